"""A small drawing of a run's losses: hundreds of them stand in one page, so each is two lines and four numbers."""

import math

from markupsafe import Markup, escape

from analysis.learning import Points

WIDTH, HEIGHT, LEFT, BOTTOM = 360, 120, 44, 18


def svg(curves: dict[str, Points], name: str) -> Markup:
    """Loss against updates, the updates on a logarithmic axis; "" where there is no curve.

    name: of the run, for who cannot see it.
    """
    points = [point for known in curves.values() for point in known]
    if len(points) < 2:
        return Markup("")
    xs = [math.log(max(update, 1)) for update, _ in points]
    ys = [loss for _, loss in points]
    left, right, low, high = min(xs), max(xs), min(ys), max(ys)

    def place(point: tuple[int, float]) -> str:
        x = (math.log(max(point[0], 1)) - left) / (right - left or 1)
        y = (point[1] - low) / (high - low or 1)
        return f"{LEFT + x * (WIDTH - LEFT - 4):.1f},{4 + (1 - y) * (HEIGHT - BOTTOM - 8):.1f}"

    ends = {curve: known[-1][1] for curve, known in curves.items()}
    told = ", ".join(f"{curve} ends at {value:.3f}" for curve, value in ends.items())
    lines = [f'<polyline class="{curve}" points="{" ".join(map(place, known))}"/>' for curve, known in curves.items()]
    last = max(update for update, _ in points)
    first = min(update for update, _ in points)
    labels = [
        f'<text x="{WIDTH - 4}" y="12" text-anchor="end">loss (bold: on validation)</text>',
        f'<text x="{LEFT - 4}" y="12" text-anchor="end">{high:.2f}</text>',
        f'<text x="{LEFT - 4}" y="{HEIGHT - BOTTOM - 2}" text-anchor="end">{low:.2f}</text>',
        f'<text x="{LEFT}" y="{HEIGHT - 4}">{first:,}</text>',
        f'<text x="{WIDTH - 4}" y="{HEIGHT - 4}" text-anchor="end">{last:,} updates</text>',
    ]
    title = f"<title>{escape(name)}: loss while training; {told}</title>"
    return Markup(
        f'<svg class="curve" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">{title}{"".join(lines + labels)}</svg>'
    )
