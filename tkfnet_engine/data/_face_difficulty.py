"""How hard the synthetic expressions are: every knob that moves the Bayes error sits here."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Difficulty:
    """Ranges from which one photograph's expression strength and quality are drawn.

    None of them looks at the label, so none can become a shortcut.
    """

    # Overall strength of the expression: low + (high - low) * Beta(a, b).
    intensity: tuple[float, float] = (0.26, 1.0)
    intensity_beta: tuple[float, float] = (2.2, 1.7)
    # Relative standard deviation of each action unit around its prototype value.
    unit_jitter: float = 0.22
    # Left/right difference of an action unit, relative.
    asymmetry: float = 0.12
    # Scale of the half-normal activity every action unit has in every photograph.
    leakage: float = 0.065
    # Probability and strength of a weak second expression mixed in.
    blend_probability: float = 0.16
    blend_strength: tuple[float, float] = (0.2, 0.7)
    # Probability that something covers part of the face.
    occlusion_probability: float = 0.09
    # Probability of a poor camera, which draws from the second range of each pair below.
    poor_camera_probability: float = 0.13
    noise: tuple[tuple[float, float], tuple[float, float]] = ((0.004, 0.018), (0.02, 0.06))
    # Blur radius as a fraction of the image side.
    blur: tuple[tuple[float, float], tuple[float, float]] = ((0.0, 0.004), (0.005, 0.014))
    exposure: tuple[tuple[float, float], tuple[float, float]] = ((0.82, 1.2), (0.35, 1.5))
    # Largest head roll in radians; yaw and pitch in face units of feature shift.
    roll: float = 0.26
    yaw: float = 0.10
    pitch: float = 0.05


DIFFICULTY = Difficulty()
