"""Memory of large results: used again once they are dead, and never before."""

import gc
import threading

import numpy as np
import pytest

from bonaware import _memory

resource = pytest.importorskip("resource")

LARGE = (1 << 20, 1)  # 8 MiB: kept
MIB = 1 << 20


def resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


@pytest.fixture(autouse=True)
def no_arrays_of_others():
    gc.collect()


@pytest.mark.parametrize("shape", [7, (3,), (0,), (0, 5), (2, 3, 4), (1000, 64), LARGE, (2**19, 3)])
def test_arrays_are_like_those_of_numpy(shape):
    made, like = _memory.empty(shape), np.empty(shape)
    assert (made.shape, made.dtype, made.strides) == (like.shape, like.dtype, like.strides)
    assert made.flags == like.flags
    made[...] = 1.5
    assert made.sum() == 1.5 * made.size


def test_large_arrays_begin_with_a_cache_line():
    assert _memory.empty(LARGE).ctypes.data % 64 == 0


def test_memory_of_a_dead_array_is_used_again():
    first = _memory.empty(LARGE)
    first[:] = 3.0
    del first
    assert (_memory.empty((1 << 19, 2)) == 3.0).all()


def test_memory_of_a_dead_array_outlives_one_that_is_too_large():
    first = _memory.empty(LARGE)
    first[:] = 4.0
    del first
    _memory.empty((40 * MIB,))
    assert (_memory.empty(LARGE) == 4.0).all()


def test_memory_of_another_size_is_not():
    first = _memory.empty(LARGE)
    first[:] = 5.0
    del first
    assert not (_memory.empty((3 << 20,)) == 5.0).any()
    assert (_memory.empty(LARGE) == 5.0).all()


def test_memory_is_not_used_again_while_a_view_lives():
    first = _memory.empty(LARGE)
    first[:] = 1.0
    view = first[10:20]
    del first
    second = _memory.empty(LARGE)
    second[:] = 2.0
    assert not np.shares_memory(view, second)
    assert (view == 1.0).all()


def test_arrays_that_live_together_are_apart():
    arrays = [_memory.empty(LARGE) for _ in range(5)]
    for i, array in enumerate(arrays):
        array[:] = i
    assert [array.mean() for array in arrays] == [0, 1, 2, 3, 4]


def test_an_array_that_is_resized_keeps_its_elements():
    array = _memory.empty((1 << 20,))
    array[:] = np.arange(1 << 20)
    array.resize((1 << 22,), refcheck=False)
    np.testing.assert_array_equal(array[: 1 << 20], np.arange(1 << 20))
    assert (array[1 << 20 :] == 0).all()
    array.resize((10,), refcheck=False)
    np.testing.assert_array_equal(array, np.arange(10))


def test_the_arrays_of_others_are_made_as_before():
    name = np._core.multiarray.get_handler_name
    before = name(np.empty(1 << 20))
    ours = _memory.empty(LARGE)
    assert name(ours) == "bonaware"
    assert name(np.empty(1 << 20)) == before
    with pytest.raises(MemoryError, match="288230376151711744"):
        _memory.empty((1 << 58,))
    assert name(np.empty(1 << 20)) == before


def test_no_more_than_256_mib_are_kept():
    def use(count):
        arrays = [_memory.empty((4 * MIB,)) for _ in range(count)]  # 32 MiB each
        for array in arrays:
            array[:] = 1.0

    before = resident()
    _memory.empty((40 * MIB,))[:] = 1.0  # 320 MiB: goes back at once
    assert resident() - before < 32 * MIB
    use(16)
    assert resident() - before < (256 + 32) * MIB
    use(1)
    assert resident() - before < (256 + 32) * MIB


@pytest.mark.parametrize(
    "shape", [(-1,), (-1, -(1 << 20)), (1 << 40, 1 << 40), (1 << 62,), ("a",), None, (2, 2.5)]
)
def test_no_shape_is_an_error(shape):
    with pytest.raises((ValueError, TypeError, MemoryError)):
        _memory.empty(shape)


def test_threads_do_not_share_blocks():
    wrong = []

    def work(mark):
        for _ in range(50):
            array = _memory.empty(LARGE)
            array[:] = mark  # without the GIL, so that threads take turns in it
            if not (array == mark).all():
                wrong.append(mark)

    threads = [threading.Thread(target=work, args=(mark,)) for mark in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
