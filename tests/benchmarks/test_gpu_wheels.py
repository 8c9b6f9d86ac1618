"""Wheels for a machine without a network: which fit, and how they are unpacked."""

from __future__ import annotations

import platform
import sys
import zipfile

import pytest

HERE = f"cp{sys.version_info.major}{sys.version_info.minor}"
OTHER = f"cp{sys.version_info.major}{sys.version_info.minor + 1}"
LINUX = f"manylinux_2_28_{platform.machine()}"


@pytest.fixture
def wheel(tmp_path):
    """wheel(name, {path: text}): one in the folder "wheels"."""

    def make(name, files=None):
        path = tmp_path / "wheels" / name
        path.parent.mkdir(exist_ok=True)
        with zipfile.ZipFile(path, "w") as archive:
            for inside, text in (files or {}).items():
                archive.writestr(inside, text)
        return path

    return make


@pytest.fixture
def unpacked(tmp_path, scripts_importable):
    """unpacked(): what was said; the files lie in `unpacked.target`."""
    from gpu_wheels import unpack

    def run():
        return unpack(tmp_path / "wheels", run.target)

    run.target = tmp_path / "out" / "wheels"
    return run


def test_a_wheels_packages_and_their_versions_are_found(wheel, unpacked, monkeypatch):
    about = "carried-1.2.dist-info/METADATA"
    wheel("carried-1.2-py3-none-any.whl", {"carried/__init__.py": "value = 3", about: "Name: carried\nVersion: 1.2\n"})
    wheel(f"lib_of_it-1.2-py2.py3-none-{LINUX}.whl", {"lib_of_it/lib.so.1": "code"})
    wheel(f"apart-0.1-{HERE}-none-{LINUX}.whl", {"apart-0.1.data/platlib/apart.py": "value = 4"})
    said = unpacked()
    assert "carried-1.2" in said and "lib_of_it-1.2" in said and str(unpacked.target) in said
    monkeypatch.syspath_prepend(str(unpacked.target))
    from importlib.metadata import version

    import apart
    import carried

    assert (carried.value, apart.value, version("carried")) == (3, 4, "1.2")
    assert (unpacked.target / "lib_of_it" / "lib.so.1").read_text() == "code"


def test_the_same_wheels_are_unpacked_once_and_others_replace_them(wheel, unpacked):
    old = wheel("carried-1.0-py3-none-any.whl", {"old.py": ""})
    unpacked()
    (unpacked.target / "mark").write_text("")
    assert unpacked() == "carried-1.0: unpacked before" and (unpacked.target / "mark").exists()
    old.unlink()
    wheel("carried-1.1-py3-none-any.whl", {"new.py": ""})
    unpacked()
    assert {path.name for path in unpacked.target.iterdir()} == {"new.py", "unpacked.json"}


@pytest.mark.parametrize(
    ("tags", "fits"),
    [
        ("py3-none-any", True),
        ("py2.py3-none-any", True),
        ("py2-none-any", False),
        (f"{HERE}-{HERE}-{LINUX}", True),
        (f"{HERE}-none-manylinux1_{platform.machine()}.{LINUX}", True),
        (f"{OTHER}-none-{LINUX}", False),
        (f"cp38.{HERE}-none-{LINUX}", True),
        (f"cp38-none-{LINUX}", False),
        (f"cp38-abi3-{LINUX}", True),
        (f"{OTHER}-abi3-{LINUX}", False),
        (f"{HERE}-none-win_amd64", False),
        (f"{HERE}-none-manylinux_2_28_sparc", False),
        (f"1build-{HERE}-none-{LINUX}", True),
    ],
)
def test_a_wheel_for_another_python_or_machine_is_told_by_its_name(tags, fits, wheel, unpacked):
    from gpu_wheels import chosen

    path = wheel(f"carried-1.0-{tags}.whl")
    if fits:
        assert chosen([path]) == [path]
    else:
        with pytest.raises(ValueError, match=r"got carried-1\.0.*expected one wheel of carried for Python 3\."):
            chosen([path])


def test_of_several_wheels_of_a_package_the_one_that_fits_is_taken(wheel, unpacked):
    wheel(f"carried-1.0-{OTHER}-none-{LINUX}.whl", {"other.py": ""})
    wheel(f"carried-1.0-{HERE}-none-{LINUX}.whl", {"here.py": ""})
    unpacked()
    assert (unpacked.target / "here.py").exists() and not (unpacked.target / "other.py").exists()
    wheel("carried-1.1-py3-none-any.whl", {"newer.py": ""})
    with pytest.raises(ValueError, match=r"carried-1\.0.*carried-1\.1.*keep one"):
        unpacked()


def test_what_cannot_be_unpacked_leaves_what_was_there(wheel, unpacked, tmp_path):
    with pytest.raises(ValueError, match="got no wheel, expected files such as"):
        unpacked()
    wheel("carried-1.0-py3-none-any.whl", {"fine.py": ""})
    unpacked()
    (tmp_path / "wheels" / "carried-1.0-py3-none-any.whl").write_bytes(b"PK, and then nothing")
    with pytest.raises(ValueError, match=r"carried-1\.0-py3-none-any\.whl is damaged"):
        unpacked()
    assert (unpacked.target / "fine.py").exists()
