/* py_module.h - the slots that modules of array functions have in common.
 *
 * NumPy keeps per-process state, so one interpreter only. The modules have none of their own,
 * or a lock for it: they run without the GIL where Python has none.
 */
#ifndef BON_PY_MODULE_H
#define BON_PY_MODULE_H

#include "py_common.h"

static int exec_module(PyObject *Py_UNUSED(module))
{
    return PyArray_ImportNumPyAPI();
}

static PyModuleDef_Slot slots[] = {
    {Py_mod_exec, exec_module},
#if PY_VERSION_HEX >= 0x030C0000
    {Py_mod_multiple_interpreters, Py_MOD_MULTIPLE_INTERPRETERS_NOT_SUPPORTED},
#endif
#if PY_VERSION_HEX >= 0x030D0000
    {Py_mod_gil, Py_MOD_GIL_NOT_USED},
#endif
    {0, NULL},
};

#endif /* BON_PY_MODULE_H */
