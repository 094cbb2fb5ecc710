"""Money: what a million tokens cost on a machine rented by the hour."""


def dollars_per_million_tokens(dollars_per_hour: float, tokens_per_second: float | None) -> float | None:
    """Price of a million tokens at a steady rate; None where the rate was not measured or is zero."""
    if not tokens_per_second:
        return None
    return dollars_per_hour / 3600 * 1e6 / tokens_per_second
