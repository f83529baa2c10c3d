"""Draw the chart of the page "Which estimator?": ``python docs/draw_chart.py`` writes docs/images/choosing.svg.

The page includes the SVG as it is, so that boxes are links, and colours are those of the theme, light or dark. It is
360 units wide: as wide as the text on a phone, where 1 unit is about 1 pixel.
"""

from html import escape
from pathlib import Path

WIDTH, MARGIN, ROW, GAP = 360, 10, 44, 18
TASKS = [  # colour, question, answers: two lines of a condition, and an estimator
    (
        "#3f90da",
        "I want latent codes (an embedding)",
        [
            ("few samples,", "or a linear structure", "TorchPPCA"),
            ("nonlinear, with samples", "and densities", "VAEEmbedder"),
            ("reconstructions only,", "or denoising", "AutoencoderEmbedder"),
        ],
    ),
    (
        "#9b51d0",
        "I want clusters",
        [
            ("of any shape and size:", "try this first", "TorchGMM"),
            ("many clusters,", "or many samples", "TorchMiniBatchKMeans"),
            ("of images, or of many", "dependent features", "VaDEClusterer"),
        ],
    ),
    (
        "#e76300",
        "I want densities, outliers or imputation",
        [
            ("some dozen features,", "missing values", "TorchGMM"),
            ("few samples,", "or a linear structure", "TorchPPCA"),
            ("images, counts, categories,", "nonlinear structure", "VAEEmbedder"),
        ],
    ),
    (
        "#717581",
        "I want class names from few labels",
        [
            ("classes are clusters,", "which the labels name", "ClusterLabelClassifier"),
        ],
    ),
]


def chart():
    """Return the lines of the SVG."""
    lines, y = [], MARGIN
    for colour, question, answers in TASKS:
        lines.append(f'<rect class="task" x="{MARGIN}" y="{y}" width="{WIDTH - 2 * MARGIN}" height="30" rx="6"/>')
        lines.append(f'<rect x="{MARGIN}" y="{y}" width="6" height="30" rx="3" fill="{colour}"/>')
        lines.append(f'<text class="question" x="{MARGIN + 16}" y="{y + 20}">{escape(question)}</text>')
        top, y = y + 30, y + 38
        for first, second, name in answers:
            middle = y + ROW / 2 - 4
            lines.append(f'<path class="line" d="M{MARGIN + 3} {top}V{middle}H{MARGIN + 12}" stroke="{colour}"/>')
            for text, offset in ((first, -4), (second, 12)):
                lines.append(f'<text x="{MARGIN + 18}" y="{middle + offset}">{escape(text)}</text>')
            lines.append(f'<path class="line" d="M188 {middle}H196" stroke="{colour}"/>')
            lines.append(f'<a href="generated/skvae.{name}.html">')
            lines.append(
                f'<rect class="box" x="196" y="{middle - 15}" width="154" height="30" rx="6" stroke="{colour}"/>'
            )
            lines.append(f'<text class="name" x="273" y="{middle + 4}">{name}</text></a>')
            y += ROW
        y += GAP
    title = "Estimators by task: embeddings, clusters, densities, class names"
    return [
        f'<svg class="chart" xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y - GAP}" role="group" '
        'aria-labelledby="chart-title">',
        f'<title id="chart-title">{title}</title>',
        *(f"  {line}" for line in lines),
        "</svg>",
    ]


if __name__ == "__main__":
    (Path(__file__).parent / "images" / "choosing.svg").write_text("\n".join(chart()) + "\n")
