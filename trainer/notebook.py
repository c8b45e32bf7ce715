"""A line of output in a notebook that is replaced by the next, such as a progress bar."""

import sys


def running() -> bool:
    """Whether this process is the kernel of a notebook."""
    if "ipykernel" not in sys.modules:
        return False
    from IPython import get_ipython

    return getattr(get_ipython(), "kernel", None) is not None


class Line:
    """A line in the output of the running cell."""

    def __init__(self):
        from IPython.display import display

        self._handle = display({"text/plain": ""}, raw=True, display_id=True)

    def write(self, text: str) -> None:
        """Replaces the line."""
        self._handle.update({"text/plain": text}, raw=True)


def bar(share: float, width: int = 20) -> str:
    """`share`, from 0 to 1, as a bar of characters."""
    full = round(width * min(max(share, 0.0), 1.0))
    return "█" * full + "░" * (width - full)
