"""Numbers as people read them."""


def count(value: int) -> str:
    """A whole number with its thousands parted."""
    return f"{value:,}"


def number(value: float | None, digits: int = 3) -> str:
    """A number with so many significant digits; a dash where there is none."""
    if value is None:
        return "–"
    if value == 0:
        return "0"
    if 1e-3 <= abs(value) < 1e6:
        return f"{value:.{digits}g}" if abs(value) < 1000 else f"{value:,.0f}"
    mantissa, _, exponent = f"{value:.{digits - 1}e}".partition("e")
    return f"{mantissa}e{int(exponent)}"


def percent(value: float | None) -> str:
    """A share in percent: two significant digits, but never 0 or 100 for what is neither."""
    if value is None:
        return "–"
    hundred = 100 * value
    if value in (0.0, 1.0) or 1 <= hundred < 99:
        return f"{hundred:.0f} %"
    if hundred >= 99:
        return f"{hundred:.1f} %" if hundred < 99.95 else f"{hundred:,.0f} %" if hundred > 100 else "> 99.9 %"
    return f"{hundred:.2g} %" if hundred >= 0.01 else "< 0.01 %"
