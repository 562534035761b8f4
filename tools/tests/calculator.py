"""Computes expressions with Python's fractions, for calculator.json: python tools/tests/calculator.py"""

import json
import random
from fractions import Fraction
from pathlib import Path

PLACES = 12


def expression(rng, depth):
    """Text and value; the value is None after a division by zero."""
    if depth == 0 or rng.random() < 0.2:
        if rng.random() < 0.7:
            text = str(rng.randrange(10 ** rng.randrange(1, 5)))
        else:
            text = f"{rng.randrange(1000)}.{rng.randrange(1000)}"
        return text, Fraction(text)
    kind = rng.choice("+-*/(n")
    if kind == "(":
        text, value = expression(rng, depth - 1)
        return f"({text})", value
    if kind == "n":
        text, value = expression(rng, depth - 1)
        return f"-({text})", None if value is None else -value
    (a, x), (b, y) = expression(rng, depth - 1), expression(rng, depth - 1)
    space = rng.choice(["", " "])
    text = f"({a}){space}{kind}{space}({b})"
    if x is None or y is None or (kind == "/" and y == 0):
        return text, None
    return text, {"+": x + y, "-": x - y, "*": x * y, "/": x / y if y else None}[kind]


def flat(rng):
    """Without parentheses, so that precedence counts: Python parses it."""
    names = [str(rng.randrange(1, 1000)) for _ in range(rng.randrange(2, 6))]
    ops = [rng.choice("+-*/") for _ in names[1:]]
    text = names[0] + "".join(op + name for op, name in zip(ops, names[1:]))
    code = f"F({names[0]})" + "".join(f"{op}F({name})" for op, name in zip(ops, names[1:]))
    return text, eval(code, {"F": Fraction})


def decimal(value):
    if value is None:
        return "division by zero"
    rest, places = value.denominator, 0
    for prime in (2, 5):
        power = 0
        while rest % prime == 0:
            rest //= prime
            power += 1
        places = max(places, power)
    end = ""
    if rest != 1:
        places, end = PLACES, "..."
    sign = "-" if value < 0 else ""
    whole, part = divmod(abs(value), 1)
    return f"{sign}{whole}" + (f".{int(part * 10**places):0{places}}{end}" if places else "")


def main():
    rng = random.Random(1)
    cases = [flat(rng) for _ in range(250)] + [expression(rng, 3) for _ in range(250)]
    # Only what fits in the calculator's 128 bits on every way there.
    cases = [(t, v) for t, v in cases if v is None or max(abs(v.numerator), v.denominator) < 10**18]
    path = Path(__file__).parent / "fixtures/calculator.json"
    rows = ",\n".join(json.dumps([text, decimal(value)]) for text, value in cases)
    path.write_text(f"[\n{rows}\n]\n")
    print(len(cases), "cases")


if __name__ == "__main__":
    main()
