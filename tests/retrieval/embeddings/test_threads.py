"""What is read ahead of a pass and written behind it."""

import threading

import pytest

from retrieval.embeddings import threads


def test_an_item_is_made_while_the_one_before_it_is_used():
    made = []

    def items():
        for n in range(3):
            made.append(n)
            yield n, n
        raise ValueError("the fourth")

    found = threads.ahead(items())
    assert next(found) == (0, 0)
    next(found)  # once it is there, the third has been asked for
    assert made[:2] == [0, 1] and next(found) == (2, 2)
    with pytest.raises(ValueError, match="the fourth"):
        next(found)
    stopped = threads.ahead(items())
    next(stopped)
    stopped.close()


def test_calls_run_in_order_while_the_caller_goes_on():
    done, may_end = [], threading.Event()
    with threads.Behind() as behind:
        behind.submit(lambda: may_end.wait(60) and done.append(1))
        assert not done
        behind.check()  # does not wait
        may_end.set()
        behind.submit(done.append, 2)
    assert done == [1, 2]


@pytest.mark.parametrize("notice", ["submit", "check", "end"])
def test_an_error_is_raised_by_what_comes_next(notice):
    with pytest.raises(OSError, match="full"), threads.Behind() as behind:
        behind.submit(_full)
        if notice == "submit":
            behind.submit(pytest.fail)
        elif notice == "check":
            behind.check(wait=True)
            pytest.fail("not raised")


def test_an_error_of_the_caller_is_kept():
    with pytest.raises(ValueError, match="of the caller"), threads.Behind() as behind:
        behind.submit(_full)
        raise ValueError("of the caller")


def _full():
    raise OSError("full")
