"""Which parts `make gpu` has, and for which sources their results count."""

from __future__ import annotations

from .conftest import ROOT, SCRIPTS


def test_every_part_has_its_script(scripts_importable):
    from gpu_state import PARTS

    names = [part.name for part in PARTS]
    assert len(set(names)) == len(names)
    assert all((SCRIPTS / part.script).is_file() for part in PARTS)
    before = [(part, set(names[:i])) for i, part in enumerate(PARTS)]
    assert all({*part.needs, *part.takes} <= earlier for part, earlier in before), "a part needs one before it"


def test_engines_in_eight_bits_have_parts_of_their_own(scripts_importable):
    from gpu_state import BUILDS, ENGINES, PARTS

    parts = {part.name: part for part in PARTS}
    assert ENGINES["float16"] in parts["build"].products
    for precision in ("int8", "float8"):
        build = parts[BUILDS[precision]]
        assert build.products == (ENGINES[precision],) and build.needs == ("calibrate",)
        users = [parts[f"{kind}-{precision}"] for kind in ("launches", "sanitizer-memcheck", "sanitizer-racecheck")]
        assert all(part.arguments[-2:] == ("--precision", precision) for part in (build, *users))
        assert all(build.name in part.needs for part in users)
    # FP16 is timed and tested also where the others could not be built.
    for name in ("tests", "network-1", "network-256"):
        assert parts[name].needs == ("build",) and {"build-int8", "build-float8"} < set(parts[name].takes)


def test_tensorrts_engines_have_parts_of_their_own(scripts_importable):
    from gpu_state import PARTS, TENSORRT_BUILDS

    parts = {part.name: part for part in PARTS}
    for precision, name in TENSORRT_BUILDS.items():
        part = parts[name]
        assert part.arguments == ("--precision", precision)
        assert part.products == (f"trt-{precision}-small.tkf", f"trt-{precision}-large.tkf")
        assert all(name in parts[user].takes for user in ("tests", "network-1", "network-256"))
    # What they verify on: the faces that `build` has kept, and the labelled ones.
    assert parts["build-trt"].needs == ("build",) and parts["build-trt-int8"].needs == ("calibrate",)


def test_every_source_counts_and_nothing_else(tmp_path):
    from gpu_state import SOURCES, source_hash

    for folder in SOURCES:
        (tmp_path / folder / "deep").mkdir(parents=True)
        (tmp_path / folder / "deep" / "a.py").write_text("a = 1\n")
    seen = {source_hash(tmp_path)}
    for folder in SOURCES:
        for name in ("deep/a.py", "tiles.json", "new.py"):
            (tmp_path / folder / name).write_text(f"changed {name}")
            seen.add(source_hash(tmp_path))
    assert len(seen) == 1 + 3 * len(SOURCES)
    (tmp_path / "kernels" / "README.md").write_text("x")
    (tmp_path / "kernels" / "a.pyc").write_text("x")
    (tmp_path / "docs").mkdir()
    assert source_hash(tmp_path) in seen
    assert all((ROOT / folder).is_dir() for folder in SOURCES)


def test_a_file_that_moves_counts(tmp_path):
    from gpu_state import source_hash

    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "a.py").write_text("")
    before = source_hash(tmp_path)
    (tmp_path / "kernels" / "a.py").rename(tmp_path / "kernels" / "b.py")
    assert source_hash(tmp_path) != before
