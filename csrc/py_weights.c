/* py_weights.c - the Python type bonaware._engine.Weights: one safetensors file.
 *
 * Arrays are views into the map: no byte is copied, and each holds a reference
 * to its Weights, which unmaps the file when the last one is gone.
 */
#include "py_engine.h"

#include <string.h>

#include "py_weights.h"
#include "weights.h"

#define MESSAGE_BYTES 512

typedef struct {
    PyObject_HEAD
    bon_weights *weights; /* NULL only before __new__ has returned */
    PyObject *path;       /* str, bytes or PathLike as given, for messages */
} Weights;

/* -- life ------------------------------------------------------------------ */

static void weights_dealloc(PyObject *obj)
{
    Weights *self = (Weights *)obj;
    PyTypeObject *type = Py_TYPE(obj);
    bon_weights_close(self->weights);
    Py_XDECREF(self->path);
    type->tp_free(obj);
    Py_DECREF(type);
}

static void raise_open_error(bon_status status, const char *text, PyObject *path)
{
    if (status == BON_ERR_IO)
        PyErr_SetFromErrnoWithFilenameObject(PyExc_OSError, path);
    else if (status == BON_ERR_FORMAT)
        PyErr_Format(PyExc_ValueError, "%S: %s", path, text);
    else
        PyErr_NoMemory();
}

static PyObject *weights_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *keywords[] = {"path", NULL};
    PyObject *path, *encoded = NULL, *obj = NULL;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O:Weights", keywords, &path)) return NULL;
    if (!PyUnicode_FSConverter(path, &encoded)) return NULL;

    obj = type->tp_alloc(type, 0);
    if (obj == NULL) goto done;
    Weights *self = (Weights *)obj;
    self->path = Py_NewRef(path);

    char text[MESSAGE_BYTES];
    bon_status status;
    Py_BEGIN_ALLOW_THREADS
    status = bon_weights_open(PyBytes_AS_STRING(encoded), &self->weights, text, sizeof text);
    Py_END_ALLOW_THREADS
    if (status != BON_OK) {
        raise_open_error(status, text, path);
        Py_CLEAR(obj);
    }

done:
    Py_DECREF(encoded);
    return obj;
}

static PyObject *weights_path(PyObject *obj, void *Py_UNUSED(closure))
{
    return Py_NewRef(((Weights *)obj)->path);
}

static PyObject *weights_repr(PyObject *obj)
{
    const Weights *self = (const Weights *)obj;
    return PyUnicode_FromFormat("<Weights %R: %zu tensors>", self->path,
                                bon_weights_count(self->weights));
}

/* -- looking up ------------------------------------------------------------ */

/* The tensor, borrowed, or NULL with TypeError or KeyError set. */
static const bon_tensor *find_tensor(PyObject *obj, PyObject *name)
{
    if (!PyUnicode_Check(name)) {
        PyErr_Format(PyExc_TypeError, "the name of a tensor must be a str, got %.200s",
                     Py_TYPE(name)->tp_name);
        return NULL;
    }
    Py_ssize_t length;
    const char *text = PyUnicode_AsUTF8AndSize(name, &length);
    if (text == NULL) return NULL;
    const Weights *self = (const Weights *)obj;
    const bon_tensor *tensor =
        strlen(text) == (size_t)length ? bon_weights_find(self->weights, text) : NULL;
    if (tensor == NULL)
        PyErr_Format(PyExc_KeyError, "no tensor \"%U\" in %S", name, self->path);
    return tensor;
}

PyDoc_STRVAR(names_doc,
"names($self, /)\n--\n\n"
"The names of the tensors, a sorted list of str.");

static PyObject *weights_names(PyObject *obj, PyObject *Py_UNUSED(none))
{
    const bon_weights *weights = ((Weights *)obj)->weights;
    const size_t count = bon_weights_count(weights);
    PyObject *list = PyList_New((Py_ssize_t)count);
    if (list == NULL) return NULL;
    for (size_t i = 0; i < count; i++) {
        PyObject *name = PyUnicode_FromString(bon_weights_at(weights, i)->name);
        if (name == NULL) {
            Py_DECREF(list);
            return NULL;
        }
        PyList_SET_ITEM(list, (Py_ssize_t)i, name);
    }
    return list;
}

PyDoc_STRVAR(info_doc,
"info($self, name, /)\n--\n\n"
"(dtype, shape) of a tensor: the format's word, such as \"BF16\", and a tuple of int.");

static PyObject *weights_info(PyObject *obj, PyObject *name)
{
    const bon_tensor *tensor = find_tensor(obj, name);
    if (tensor == NULL) return NULL;
    PyObject *shape = PyTuple_New((Py_ssize_t)tensor->ndim);
    if (shape == NULL) return NULL;
    for (size_t i = 0; i < tensor->ndim; i++) {
        PyObject *size = PyLong_FromSize_t(tensor->shape[i]);
        if (size == NULL) {
            Py_DECREF(shape);
            return NULL;
        }
        PyTuple_SET_ITEM(shape, (Py_ssize_t)i, size);
    }
    return Py_BuildValue("(sN)", tensor->dtype, shape);
}

/* -- arrays ---------------------------------------------------------------- */

/* NumPy has no bfloat16 and no eight-bit floats: their bits come as unsigned. */
static int numpy_type(const char *dtype)
{
    static const struct {
        const char *name;
        int type;
    } types[] = {
        {"BOOL", NPY_BOOL},   {"U8", NPY_UINT8},    {"I8", NPY_INT8},     {"I16", NPY_INT16},
        {"U16", NPY_UINT16},  {"BF16", NPY_UINT16}, {"F16", NPY_FLOAT16}, {"I32", NPY_INT32},
        {"U32", NPY_UINT32},  {"F32", NPY_FLOAT32}, {"F64", NPY_FLOAT64}, {"I64", NPY_INT64},
        {"U64", NPY_UINT64},  {"C64", NPY_COMPLEX64},
    };
    for (size_t i = 0; i < sizeof types / sizeof *types; i++)
        if (strcmp(dtype, types[i].name) == 0) return types[i].type;
    return NPY_UINT8;
}

PyDoc_STRVAR(array_doc,
"array($self, name, /)\n--\n\n"
"The tensor as a read-only array over the mapped file, which stays mapped as long as\n"
"the array lives. BF16 comes as uint16 and eight-bit floats as uint8: their bits.");

static PyObject *weights_array(PyObject *obj, PyObject *name)
{
    const bon_tensor *tensor = find_tensor(obj, name);
    if (tensor == NULL) return NULL;
    npy_intp dims[BON_MAX_DIMS];
    for (size_t i = 0; i < tensor->ndim; i++) {
        if (tensor->shape[i] > (size_t)NPY_MAX_INTP)
            return PyErr_Format(PyExc_ValueError,
                                "tensor \"%U\" must have sizes below 2**63 to become an array, "
                                "found %zu", name, tensor->shape[i]);
        dims[i] = (npy_intp)tensor->shape[i];
    }
    PyArray_Descr *descr = PyArray_DescrFromType(numpy_type(tensor->dtype));
    if (descr == NULL) return NULL;
    /* not NPY_ARRAY_WRITEABLE, so the data may be const */
    PyObject *array = PyArray_NewFromDescr(&PyArray_Type, descr, (int)tensor->ndim, dims, NULL,
                                           (void *)(uintptr_t)tensor->data, 0, NULL);
    if (array == NULL) return NULL;
    PyArray_UpdateFlags((PyArrayObject *)array, NPY_ARRAY_UPDATE_ALL);
    if (PyArray_SetBaseObject((PyArrayObject *)array, Py_NewRef(obj)) < 0) Py_CLEAR(array);
    return array;
}

PyDoc_STRVAR(release_doc,
"release($self, name, /)\n--\n\n"
"Tell the system that the tensor's pages are not needed in memory now. Reading it\n"
"later brings them back from the file.");

static PyObject *weights_release(PyObject *obj, PyObject *name)
{
    const bon_tensor *tensor = find_tensor(obj, name);
    if (tensor == NULL) return NULL;
    bon_weights_release(((Weights *)obj)->weights, tensor);
    Py_RETURN_NONE;
}

/* -- type ------------------------------------------------------------------ */

static PyMethodDef methods[] = {
    {"names", weights_names, METH_NOARGS, names_doc},
    {"info", weights_info, METH_O, info_doc},
    {"array", weights_array, METH_O, array_doc},
    {"release", weights_release, METH_O, release_doc},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef getters[] = {
    {"path", weights_path, NULL, "The path as it was given.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

PyDoc_STRVAR(weights_doc,
"Weights(path)\n--\n\n"
"A safetensors file, checked whole and mapped read-only.\n\n"
"Raises OSError where the file cannot be read and ValueError, with the path and what\n"
"is wrong, where its content breaks the format.");

static PyType_Slot slots[] = {
    {Py_tp_doc, (void *)weights_doc},
    {Py_tp_new, weights_new},
    {Py_tp_dealloc, weights_dealloc},
    {Py_tp_repr, weights_repr},
    {Py_tp_methods, methods},
    {Py_tp_getset, getters},
    {0, NULL},
};

static PyType_Spec spec = {
    .name = "bonaware._engine.Weights",
    .basicsize = sizeof(Weights),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = slots,
};

int bon_add_weights_type(PyObject *module)
{
    PyObject *type = PyType_FromModuleAndSpec(module, &spec, NULL);
    if (type == NULL) return -1;
    const int result = PyModule_AddObjectRef(module, "Weights", type);
    Py_DECREF(type);
    return result;
}
