"""Runs Transformers' own common tests, those of the installed release, against MOSS-Audio: `python tests/conformance`.

They come with the release's source distribution, which pip fetches once into a cache (`MOSS_AUDIO_CONFORMANCE_CACHE`, or
`moss-audio/conformance` in the user's cache folder). Arguments go to pytest: `-k sdpa`, `-x`, `-rs`, ...
"""

import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import pytest
import transformers


HERE = Path(__file__).resolve().parent
SUITES = ("model_conformance.py", "processor_conformance.py")
PARAMETERIZED = "parameterized==0.9.0"  # the one package that the tests need and this project does not

# What the tests import and the source distribution lacks.
STAND_INS = {
    # `GenerationTesterMixin` and `ExportTesterMixin` themselves are not in the distribution; without tests of their own
    # they are only base classes.
    "transformers_tests/generation/test_utils.py": "class GenerationTesterMixin:\n    pass\n",
    "transformers_tests/exporters/test_export.py": "class ExportTesterMixin:\n    pass\n",
    # The Hub's recordings: `processor_conformance.py` puts others in their place.
    "utils/fetch_hub_objects_for_ci.py": "def url_to_local_path(url):\n    return url\n",
}


def cache_folder() -> Path:
    """Where downloads are kept between runs, outside of the repository."""
    if chosen := os.environ.get("MOSS_AUDIO_CONFORMANCE_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "moss-audio" / "conformance"


def pip(*arguments: str):
    """
    Runs pip in this environment.

    Raises:
        SystemExit: with what to do, where pip fails.
    """
    done = subprocess.run([sys.executable, "-m", "pip", *arguments], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(
            f"{done.stderr.strip()}\n\nThe conformance tests need the source distribution of transformers "
            f"{transformers.__version__}, and `pip {' '.join(arguments)}` could not fetch it. Check the connection and "
            "pip's index, or run this once where both work and point MOSS_AUDIO_CONFORMANCE_CACHE at a copy of its "
            f"cache ({cache_folder()}). A development version of Transformers has no source distribution: install a "
            "release."
        )


def fetch_tests(version: str) -> Path:
    """The folder with the tests of a release as the package `transformers_tests`, and all that they import."""
    target = cache_folder() / f"transformers-{version}"
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        scratch = Path(folder)
        pip(
            "download",
            "--quiet",
            "--no-deps",
            "--no-binary=transformers",
            f"--dest={folder}",
            f"transformers=={version}",
        )
        with tarfile.open(scratch / f"transformers-{version}.tar.gz") as archive:
            prefix = f"transformers-{version}/tests/"
            members = [member for member in archive.getmembers() if member.name.startswith(prefix)]
            archive.extractall(scratch, members, filter="data")
        unpacked = scratch / f"transformers-{version}"
        (unpacked / "tests").rename(unpacked / "transformers_tests")  # `tests` is too common a name to import
        pip("install", "--quiet", "--no-deps", f"--target={unpacked}", PARAMETERIZED)
        unpacked.rename(target)  # in one step: an interrupted download leaves nothing behind
    return target


def write_stand_ins(folder: Path):
    for name, text in STAND_INS.items():
        path = folder / name
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)


def main() -> int:
    folder = fetch_tests(transformers.__version__)
    write_stand_ins(folder)
    sys.path[:0] = [str(folder), str(folder / "utils"), str(HERE)]
    os.environ["HF_HUB_OFFLINE"] = "1"  # no test of ours needs the Hub
    print(f"transformers {transformers.__version__}, its tests in {folder}", flush=True)
    options = ["--quiet", "--confcutdir", str(HERE), "-p", "no:cacheprovider", "--disable-warnings"]
    return pytest.main([*options, *sys.argv[1:], *(str(HERE / suite) for suite in SUITES)])


if __name__ == "__main__":
    sys.exit(main())
