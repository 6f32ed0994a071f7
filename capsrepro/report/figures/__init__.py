"""The figures that `capsrepro figures` draws, by the name of their files."""

from __future__ import annotations

from capsrepro.report.figures.archive import Draw
from capsrepro.report.figures.composites import draw_composites, draw_composites_of_code
from capsrepro.report.figures.distortions import draw_distortions
from capsrepro.report.figures.entropy import draw_entropy
from capsrepro.report.figures.losses import draw_losses
from capsrepro.report.figures.overlap import draw_error_by_overlap
from capsrepro.report.figures.perturbations import draw_all_perturbations, draw_perturbations
from capsrepro.report.figures.reconstructions import draw_reconstructions
from capsrepro.report.figures.robustness import draw_accuracy, draw_targeted
from capsrepro.report.figures.routing import draw_routing
from capsrepro.report.figures.votes import draw_all_votes, draw_votes
from capsrepro.report.figures.white_box import draw_white_box

FIGURES: dict[str, Draw] = {
    "sabour2017-fig3": draw_reconstructions,
    "sabour2017-fig4": draw_perturbations,
    "sabour2017-fig4-all": draw_all_perturbations,
    "sabour2017-fig5": draw_composites,
    "sabour2017-fig5-code": draw_composites_of_code,
    "sabour2017-fig-a1": draw_routing,
    "sabour2017-fig-a2": draw_losses,
    "sabour2017-error-by-overlap": draw_error_by_overlap,
    "hinton2018-fig2": draw_votes,
    "hinton2018-fig3": draw_white_box,
    "hinton2018-figb2": draw_all_votes,
    "hinton2018-entropy": draw_entropy,
    "robustness-accuracy": draw_accuracy,
    "robustness-targeted": draw_targeted,
    "robustness-distortions": draw_distortions,
}
