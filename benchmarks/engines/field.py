"""All engines of a run, opened and judged as they are asked for, and kept open for the suites that follow."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .race import Contestant, Faces, enter
from .subjects import SUBJECTS, Subject, why_absent

if TYPE_CHECKING:
    from ..builds import Builds


class Field:
    """faces: what each is judged on. quick: leaves out what `Subject.quick` says."""

    def __init__(self, builds: Builds, faces: Faces, quick: bool):
        self._builds, self._faces, self._quick = builds, faces, quick
        self._entered: dict[str, Contestant] = {}

    def contestant(self, subject: Subject) -> Contestant:
        """Opened and judged, or with the reason why not."""
        if subject.id not in self._entered:
            reason = why_absent(subject, self._quick)
            if reason is None:
                try:
                    settings = self._builds.settings(subject)
                except RuntimeError as error:
                    reason = f"cannot be built: {error}"
            if reason is not None:
                self._entered[subject.id] = Contestant(subject, reason=reason)
            else:
                self._entered[subject.id] = enter(subject, self._faces, settings)
        return self._entered[subject.id]

    def all(self) -> list[Contestant]:
        return [self.contestant(subject) for subject in SUBJECTS]

    def close(self) -> None:
        for one in self._entered.values():
            if one.worker is not None:
                one.worker.close()
