"""Verbs made of many small fits use one BLAS thread, and leave the pools as they found them."""

from __future__ import annotations

from threadpoolctl import threadpool_info, threadpool_limits

from scmamba.annotation import annotate
from scmamba.doublets import find_doublets
from scmamba.utils.threads import single_blas_thread


def blas_threads() -> list[int]:
    return [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]


class Recorder(dict):
    """A mapping that notes how many BLAS threads there are whenever a verb reads it."""

    def items(self):
        self.seen = blas_threads()
        return super().items()


def test_block_has_one_thread_and_the_number_comes_back():
    with threadpool_limits(2, user_api="blas"):
        assert set(blas_threads()) == {2}
        with single_blas_thread():
            assert set(blas_threads()) == {1}
        assert set(blas_threads()) == {2}


def test_annotation_and_doublets_run_with_one_blas_thread(cohort):
    panel = Recorder({"Astrocyte": ["AQP4", "GFAP"], "Microglia": ["CSF1R", "P2RY12"]})
    rates = Recorder({"all": 0.1})
    with threadpool_limits(2, user_api="blas"):
        annotate(cohort, markers=panel, verbose=False)
        find_doublets(cohort.copy(), expected_rate=rates, verbose=False)
        assert set(blas_threads()) == {2}
    assert set(panel.seen) == set(rates.seen) == {1}
