"""A parser of the text exposition format 0.0.4 of Prometheus."""

import re

NAME = r"[a-zA-Z_:][a-zA-Z0-9_:]*"
LABEL = r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\\n]|\\[\\"n])*)"'
SAMPLE = re.compile(rf"({NAME})(?:{{({LABEL}(?:,{LABEL})*)}})? (NaN|[-+0-9.eE]+)")
UNESCAPED = {r"\\": "\\", r"\"": '"', r"\n": "\n"}


def parse(text):
    """Return (kind, labels, value) by name, by the specification of Prometheus."""
    assert text.endswith("\n")
    found, kinds, described = {}, {}, set()
    for line in text[:-1].split("\n"):
        if help_ := re.fullmatch(rf"# HELP ({NAME}) ((?:[^\\]|\\\\|\\n)+)", line):
            assert help_[1] not in described
            described.add(help_[1])
        elif type_ := re.fullmatch(rf"# TYPE ({NAME}) (counter|gauge)", line):
            assert type_[1] not in kinds
            kinds[type_[1]] = type_[2]
        else:
            sample = SAMPLE.fullmatch(line)
            assert sample, line
            name, labels, value = sample[1], sample[2] or "", sample[sample.re.groups]
            assert name not in found
            assert list(kinds)[-1] == name, "the type stands before the sample"
            pairs = {
                key: re.sub(r"\\.", lambda m: UNESCAPED[m[0]], raw)
                for key, raw in re.findall(LABEL, labels)
            }
            found[name] = (kinds[name], pairs, float(value))
    assert described == kinds.keys() == found.keys()
    return found
