"""The front door is small: importing forkpoint, or asking the command for help, loads neither torch nor
transformers and takes a fraction of a second."""

import subprocess
import sys
import time

import pytest

import forkpoint

HEAVY = ("torch", "transformers", "numpy", "numba")


def run_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout


@pytest.mark.parametrize(
    "code",
    [
        "import forkpoint",
        "import forkpoint; dir(forkpoint)",
        "from forkpoint.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass",
        "from forkpoint.cli import main\ntry: main(['padding', '--help'])\nexcept SystemExit: pass",
        "from forkpoint.cli import main\ntry: main(['padding', 'demo'])\nexcept SystemExit: pass",
    ],
)
def test_heavy_packages_are_not_imported(code):
    loaded = run_python(
        f"import sys\n{code}\nprint(*(name for name in {HEAVY} if name in sys.modules), sep='|')"
    )
    assert loaded.splitlines()[-1] == ""


def test_import_takes_less_than_0_3_seconds():
    code = "import time; start = time.perf_counter(); import forkpoint; print(time.perf_counter() - start)"
    assert min(float(run_python(code)) for _ in range(3)) < 0.3


def test_help_takes_less_than_a_second():
    def once():
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "forkpoint", "--help"], capture_output=True, check=True)
        return time.perf_counter() - start

    assert min(once() for _ in range(3)) < 1.0


@pytest.mark.parametrize("name", forkpoint.__all__)
def test_every_public_name_resolves(name):
    assert getattr(forkpoint, name) is not None
    assert name in dir(forkpoint)


def test_unknown_name():
    with pytest.raises(AttributeError, match="module 'forkpoint' has no attribute 'nonsense'"):
        forkpoint.nonsense  # noqa: B018


def test_a_submodule_of_the_same_name_does_not_hide_a_function():
    import forkpoint.questions.padding

    assert callable(forkpoint.padding)
