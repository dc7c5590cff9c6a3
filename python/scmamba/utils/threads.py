"""Thread pools of the linear algebra below numpy and scipy, limited where they cost more than they give."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from threadpoolctl import threadpool_limits


@contextmanager
def single_blas_thread() -> Iterator[None]:
    """Run a block, or as a decorator a function, with one BLAS thread; the former number is restored.

    Annotation and doublets fit thousands of small models. Waking the threads of BLAS for each of their
    products takes longer than the product, on an idle machine already, and many times longer where other
    processes keep the cores busy: a thread that is not scheduled holds up all others. Torch's and numba's
    threads are not touched.
    """
    with threadpool_limits(limits=1, user_api="blas"):
        yield
