"""The front door is small: importing forkpoint, or asking the command for help, loads neither torch nor
transformers, nor more of forkpoint than that needs."""

import subprocess
import sys

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


def test_importing_forkpoint_loads_the_errors_its_version_and_the_standard_library_alone():
    own = {
        "forkpoint",
        "forkpoint.errors",
        "forkpoint.printable",
        "forkpoint.support",
        "forkpoint.support.version",
    }
    assert loaded_by("import forkpoint") == own


def test_help_loads_what_reads_options_and_no_part_that_compares():
    help_ = "from forkpoint.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass"
    parts = {name.split(".")[1] for name in loaded_by(help_) if name.startswith("forkpoint.")}
    assert parts == {"cli", "errors", "printable", "questions", "result", "support"}


def loaded_by(code: str) -> set[str]:
    """What some code loads that is not of the standard library: modules of forkpoint, and other packages."""
    listing = "print(*(m for m in sys.modules if m not in before), sep='|')"
    names = (
        run_python(f"import sys\nbefore = set(sys.modules)\n{code}\n{listing}").splitlines()[-1].split("|")
    )
    packages = {name if name.partition(".")[0] == "forkpoint" else name.partition(".")[0] for name in names}
    return {name for name in packages if name not in sys.stdlib_module_names}


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
