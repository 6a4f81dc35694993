"""How numbers and untrusted strings are written for people.

    epsilon(7.991)   # "8.00"

Epsilons and deltas are rounded **up**, so that a printed guarantee is never better than the real one.
"""

import math
import unicodedata

_HIDDEN = {"Cc", "Cf", "Cs"}  # Unicode categories: control, format (bidi overrides among them), surrogate


def visible(text: str) -> str:
    """The same text with control, format and surrogate characters shown as U+FFFD: safe to print anywhere."""
    return "".join("\ufffd" if unicodedata.category(char) in _HIDDEN else char for char in text)


def score(value: float) -> str:
    """A metric in [0, 1], 4 decimals."""
    return f"{value:.4f}"


def signed(value: float) -> str:
    """A difference of metrics, 4 decimals, with its sign.

    >>> signed(0.01234), signed(0.00001)
    ('+0.0123', '0.0000')
    """
    text = f"{value:+.4f}"
    return text.replace("-", "\u2212") if float(text) else "0.0000"


def epsilon(value: float) -> str:
    """An epsilon, 2 decimals, rounded up.

    >>> epsilon(7.991), epsilon(8.0)
    ('8.00', '8.00')
    """
    # The slack forgives what arithmetic adds to a value such as 8.0, a few 1e-10.
    return f"{math.ceil(value * 100 - 1e-7) / 100:.2f}"


def delta(value: float) -> str:
    """A delta in (0, 1] or above, 2 significant digits, rounded up.

    >>> delta(1e-6), delta(1.234e-6), delta(0.0021)
    ('1e-6', '1.3e-6', '0.0021')
    """
    shift = 10.0 ** (1 - math.floor(math.log10(value) + 1e-9))
    return f"{math.ceil(value * shift - 1e-7) / shift:.2g}".replace("e-0", "e-")


def factor(value: float) -> str:
    """exp(value), rounded up.

    >>> factor(8.0), factor(1.0)
    ('2,981', '2.8')
    """
    if value > 16:
        return f"{math.exp(min(value, 700.0)):.1e}"
    power = math.exp(value)
    return f"{math.ceil(power):,}" if power >= 100 else f"{math.ceil(power * 10) / 10:.1f}"


def plural(count: int, noun: str) -> str:
    """A count with its noun."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def size(count: int) -> str:
    """A number of bytes, in decimal units.

    >>> size(999), size(84_200_000)
    ('999 bytes', '84.2 MB')
    """
    amount, units = float(count), ["bytes", "kB", "MB", "GB"]
    while amount >= 999.5 and len(units) > 1:
        amount /= 1000
        units.pop(0)
    return f"{amount:.3g} {units[0]}" if amount < 999.5 else f"{amount:,.0f} {units[0]}"


def duration(seconds: float) -> str:
    """A time span in the units that matter.

    >>> duration(4.21), duration(92), duration(7300)
    ('4.2 s', '1 min 32 s', '2 h 1 min')
    """
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def rounds(numbers: list[int]) -> str:
    """Round numbers as ranges.

    >>> rounds([1, 2, 3, 5, 9, 10]), rounds(list(range(2, 101, 2)))
    ('1 to 3, 5, 9 to 10', '50 rounds from 2 to 100')
    """
    ranges: list[list[int]] = []
    for number in sorted(set(numbers)):
        if ranges and number == ranges[-1][1] + 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    if len(ranges) > 6:
        return f"{len(set(numbers))} rounds from {ranges[0][0]} to {ranges[-1][1]}"
    return ", ".join(str(first) if first == last else f"{first} to {last}" for first, last in ranges)
