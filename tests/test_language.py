"""Language of the source and the pages: openings, phrases, first lines, errors.

The style is that of scikit-learn's docstrings: a function's docstring is an imperative, every other
one a noun phrase. Sentences have a subject, a verb and the standard words of the field.
"""

import ast
import io
import re
import tokenize
from pathlib import Path
from typing import NamedTuple

import pytest

import advkit

ROOT = Path(__file__).parents[1]
SOURCE = Path(advkit.__file__).parent
MOST_OPENINGS = 0  # docstrings of src/ that begin with a word of OPENINGS; never more than 5
MOST_PHRASES = 0  # hits of PHRASES in src/; never more than 8
MOST_PHRASES_OF_PAGES = 0  # hits of PHRASES in PAGES

DOCSTRING, COMMENT, MESSAGE, PROSE = "docstring", "comment", "message", "prose"
EVERYWHERE = (DOCSTRING, COMMENT, MESSAGE, PROSE)


class Pattern(NamedTuple):
    """A way of writing to avoid. A space of the regex is any white space, a line break included."""

    name: str
    regex: str
    reason: str
    where: tuple[str, ...]  # kinds of text that it applies to
    bad: str  # must match
    good: str  # must not match


class Text(NamedTuple):
    """A piece of text: its lines are stripped, so that a phrase may go on in the next one."""

    kind: str
    path: str
    line: int
    text: str
    node: ast.AST | None = None  # what a docstring documents


class Hit(NamedTuple):
    path: str
    line: int
    rule: str
    text: str
    reason: str

    def __str__(self):
        return f"{self.path}:{self.line}: {self.rule}: {self.text!r}: {self.reason}"


# ------------------------------------------------------------------------------------ the patterns

OPENINGS = [
    Pattern("What", r"\AWhat\b", "a question; name the thing: an imperative or a noun phrase",
            (DOCSTRING,), "What is found before the search.", "Return an empty record."),
    Pattern("Whether", r"\AWhether\b", "a question; write 'Return whether ...' or 'Mask of ...'",
            (DOCSTRING,), "Whether the samples succeeded.", "Return whether all succeeded."),
    Pattern("How", r"\AHow\b", "a question; name the quantity: 'Number of ...', 'Size of ...'",
            (DOCSTRING,), "How many steps an attack takes.", "Number of steps of an attack."),
    Pattern("Which", r"\AWhich\b", "a question; name the thing: 'Indices of ...'",
            (DOCSTRING,), "Which samples are left.", "Indices of the samples that are left."),
    Pattern("Where", r"\AWhere\b", "a question; name the thing: 'Mask of ...', 'Position of ...'",
            (DOCSTRING,), "Where the two differ.", "Mask of the entries that differ."),
    Pattern("The same", r"\AThe same\b", "points elsewhere; `help()` shows one docstring alone",
            (DOCSTRING,), "The same for a whole batch.", "Return the distances of a whole batch."),
    Pattern("Likewise", r"\ALikewise\b", "points elsewhere; `help()` shows one docstring alone",
            (DOCSTRING,), "Likewise, by labels.", "Verify the result by labels."),
    Pattern("Those", r"\AThose\b", "points at something that is not there; repeat the noun",
            (DOCSTRING,), "Those that are finished.", "Samples that are finished."),
]  # fmt: skip

MODELS = r"(?:models?|classifiers?|nets?|victims?|teachers?|students?|ensembles?|detectors?)"
AUXILIARIES = r"(?:(?:that|which|may|must|can|will|does|do|not|is|are|was|were|be|been) )*"
COMPARED = r"(?:longer|more|less|fewer|\w+er than)\b"  # 'no longer' and the like
SECOND_HALF = r"(?:is|are|was|were|has|have|does|do|lies?|holds?|takes?|gives?|gave|runs?|returned)"

PHRASES = [
    Pattern("is no", rf"(?<!\b[Tt]here )\b(?:is|are|was|were) (?:no (?!{COMPARED})|none\b(?! of))",
            "negate the verb: 'is not a ...'; only 'there is no ...' is standard",
            EVERYWHERE, "It is no attack and does not count.",
            "It is not an attack; where there is no budget, x is None and no longer counted."),
    Pattern("so", r"\b(?:is|are|was|were) so\b(?! that\b)|\bso for (?:samples?|index|all|each)\b",
            "'so' is not a pronoun; repeat what it stands for",
            EVERYWHERE, "`y` must not be negative, which is so for sample 2.",
            "`y` must not be negative, got -1 (sample 2), so that it has no class."),
    Pattern("elliptical", rf"\bmust\b(?:[^.;:]|\.(?=\w))*?, {SECOND_HALF}\b",
            "the second half has no subject; write '`x` must be ..., got ...'",
            (MESSAGE,), "`x` must be finite, has NaN in sample 3.",
            "`x` must be finite, got NaN (sample 3). If it has NaN, drop the sample."),
    Pattern("literary", r"(?i)\b(?:anew|besides?|likewise|whoever|thrifty|nobody)\b",
            "plain words: again, next to, also, anyone who, cheap, no one",
            EVERYWHERE, "The loss is computed anew beside the other one.",
            "The loss is computed again next to the other one."),
    Pattern("one's own", r"\b(?:of )?one's own\b", "'your own'",
            EVERYWHERE, "For loops of one's own.", "For your own loops."),
    Pattern("to be had", r"\bto be had\b", "'available'",
            EVERYWHERE, "No gradient is to be had.", "The gradient is not available."),
    Pattern("nothing that", r"(?i)\bnothing that\b", "negate the verb: 'does not ... anything'",
            EVERYWHERE, "It keeps nothing that a user needs.", "It drops the rest."),
    Pattern("asked", rf"(?i)\b{MODELS} {AUXILIARIES}(?:asked|answer|answers|answered)\b",
            "models are queried and evaluated; they return and predict",
            EVERYWHERE, "The model is asked once more, and the nets answer with labels.",
            "The model is queried again, and the answers of the service are labels."),
    Pattern("he", r"\b(?:he|him|[Hh]is|himself)\b", "a person is 'they'",
            EVERYWHERE, "The attacker knows what he attacks.", "The attackers know it."),
]  # fmt: skip


# -------------------------------------------------------------------------------- reading the text


def documented(tree):
    """Yield every node that has a docstring, with the docstring's node."""
    for node in ast.walk(tree):
        can = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        if can and ast.get_docstring(node, clean=False) is not None:
            yield node, node.body[0].value


def stripped(text):
    return "\n".join(line.strip() for line in text.splitlines())


def flat(node):
    """Return the text of a string, with `{expression}` for each value that an f-string fills in."""
    if isinstance(node, ast.JoinedStr):
        return "".join(map(flat, node.values))
    if isinstance(node, ast.FormattedValue):
        return f"{{{ast.unparse(node.value)}}}"
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return flat(node.left) + flat(node.right)
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    return f"{{{ast.unparse(node)}}}"


def strings(node, skipped=()):
    """Yield the outermost strings in `node`; an f-string is one string."""
    if isinstance(node, ast.JoinedStr) or (
        isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in skipped
    ):
        yield node
    for child in ast.iter_child_nodes(node):
        inside = isinstance(node, ast.JoinedStr) and isinstance(child, ast.Constant)
        if not inside:
            yield from strings(child, skipped)


def comments(path, text):
    """Yield comments; lines that hold a comment alone, one below the other, are one piece."""
    first, piece = 0, []
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            line, alone = token.start[0], token.line.lstrip().startswith("#")
            if piece and not (alone and line == first + len(piece)):
                yield Text(COMMENT, path, first, "\n".join(piece))
                piece = []
            first = first if piece else line
            piece.append(token.string.lstrip("#: "))
    if piece:
        yield Text(COMMENT, path, first, "\n".join(piece))


def texts_of_source(path, text):
    """Yield docstrings, comments and strings that contain a space."""
    tree = ast.parse(text)
    docstrings = list(documented(tree))
    for node, docstring in docstrings:
        yield Text(DOCSTRING, path, docstring.lineno, stripped(docstring.value).strip(), node)
    yield from comments(path, text)
    for node in strings(tree, {id(docstring) for _, docstring in docstrings}):
        words = re.sub(r"\{[^{}]*\}", "{}", flat(node)).replace("\n", " ")
        if " " in words.strip():
            yield Text(MESSAGE, path, node.lineno, words)


def texts_of_page(path, text):
    """Yield the paragraphs of a page, without code."""
    lines = re.sub(r"```.*?```", lambda m: "\n" * m[0].count("\n"), text, flags=re.S).split("\n")
    start = 0
    for i, line in enumerate([*lines, ""]):
        if not line.strip() or line.lstrip().startswith(("- ", "* ", "|", "#")):
            if any(map(str.strip, lines[start:i])):
                yield Text(PROSE, path, start + 1, prose(lines[start:i]))
            start = i


def prose(lines):
    return re.sub(r"`[^`]*`", "``", "\n".join(line.strip() for line in lines))


# ------------------------------------------------------------------------------ applying the rules


def matches(pattern, text):
    return re.finditer(pattern.regex.replace(" ", r"\s"), text)


def hits(patterns, texts):
    for text in texts:
        for pattern in patterns:
            if text.kind in pattern.where:
                for match in matches(pattern, text.text):
                    line = text.line + text.text[: match.start()].count("\n")
                    found = " ".join(match[0].split())
                    yield Hit(text.path, line, pattern.name, found, pattern.reason)


NOT_VERBS = (
    # articles, pronouns and determiners, numerals
    r"(?i:an?|the|i|we|you|s?he|it|they|this|that|these|those|its|their|our|your|who|whose|whatever|"
    r"what|whether|how|which|where|when|why|each|every|all|any|both|some|several|none|only|no|not|"
    r"nothing|everything|something|one|two|three|first|second|twice|true|false|"
    # prepositions, conjunctions and adverbs
    r"about|above|after|as|at|before|below|between|by|for|from|in|into|of|off|on|out|over|per|since|"
    r"through|to|towards|under|until|up|with|without|and|or|if|likewise|"
    # adjectives and nouns that stood here instead of a verb
    r"plain|uniform|standard|whole|random|best|soft|logical|noisy|lower|upper|mean|algorithm|dtype|"
    r"norm)"
)
VERBS_LIKE_OTHERS = {
    *("Pass", "Process", "Discuss", "Suppress", "Compress", "Express", "Address", "Assess"),
    *("Bring", "String", "Need", "Feed", "Embed", "Seed", "Shed", "Speed", "Proceed", "Exceed"),
    *("Warn", "Dispose", "Partition", "Position"),
}
VERBS = (  # in their base form, where 'of' would make a noun, or in the third person
    r"(Return|Compute|Get|Set|Make|Take|Find|Give|Run|Raise|Check|"
    r"Draw|Read|Write|Keep|Send|Build)(?! of)|"
    r"(Return|Compute|Get|Make|Take|Find|Give|Raise|Read|Write|Keep|Send|Minimize|Contain)s"
)
REASON = "a function's docstring begins with an imperative: 'Return ...', 'Project ...'"
NOUN_REASON = "the docstring of a class, property or module begins with a noun phrase"


def is_property(node):
    return any("property" in ast.unparse(decorator) for decorator in node.decorator_list)


def is_imperative(line):
    """Return whether `line` can begin with a verb in its base form.

    The rule needs no list of verbs: it rejects other words by their class, their ending, or an 'of'
    after them.
    """
    word, _, rest = line.partition(" ")
    word = word.rstrip(",;:.")
    if word in VERBS_LIKE_OTHERS:
        return True
    if not re.fullmatch(r"[A-Z][a-z]+", word) or re.fullmatch(NOT_VERBS, word):
        return False
    if re.search(r"(s|ing|ed|ion|ity|acy|ropy|ness|ance|ary|ous|ial|able|ible)$", word):
        return False
    return not re.match(r"(of|is|are|that|whose)\b", rest)


def fault_of_first_line(text):
    """Return the fault of the first line of a docstring, or `None`."""
    line, node = text.text.split("\n")[0], text.node
    if not line.endswith("."):
        return "the first line is one sentence and ends with a full stop"
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not is_property(node):
        return None if is_imperative(line) else REASON
    return NOUN_REASON if re.match(rf"({VERBS})\b", line) else None


def first_lines(texts):
    for text in texts:
        fault = fault_of_first_line(text) if text.kind == DOCSTRING else None
        if fault:
            line = text.text.split("\n")[0]
            yield Hit(text.path, text.line, "first line", line, fault)


def errors(path, text):
    """Yield messages of `ValueError` and `TypeError` that break the grammar of errors."""
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.Raise) or not isinstance(node.exc, ast.Call):
            continue
        if ast.unparse(node.exc.func) in ("ValueError", "TypeError"):
            for message in (m for argument in node.exc.args for m in messages(argument)):
                fault = fault_of_message(flat(message))
                if fault:
                    yield Hit(path, message.lineno, "error", flat(message), fault)


def messages(node):
    """Yield the messages in an argument; a sum of strings is one message."""
    if isinstance(node, ast.BinOp | ast.JoinedStr | ast.Constant):
        yield node
    else:
        for child in ast.iter_child_nodes(node):
            yield from messages(child)


def fault_of_message(message):
    """Return the fault of a message that says what something must be, or `None`.

    A variable `name` holds a bare name; `argument(name)` has it in backticks. A sentence or an
    `error` of other code that is filled in at the end has its own full stop, or none.
    """
    if " must " not in message:
        return None
    if re.match(r"(?!`|\{(?!name\}))\S+ must ", message):
        return "the argument stands in backticks: '`NAME` must be CONDITION, got VALUE.'"
    if not re.search(r"\.\Z|\. ?\{[^{}]*\}\Z|: \{error\}\Z", message):
        return "the message ends with a full stop: '`NAME` must be CONDITION, got VALUE.'"
    return None


# --------------------------------------------------------------------------------------- the tests


def read_source():
    for path in sorted(SOURCE.rglob("*.py")):
        yield f"src/advkit/{path.relative_to(SOURCE).as_posix()}", path.read_text(encoding="utf-8")


FILES = dict(read_source())
TEXTS = [text for path, words in FILES.items() for text in texts_of_source(path, words)]
PAGES = [
    text
    for path in [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
    for text in texts_of_page(path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8"))
]


def report(found):
    return "\n".join(map(str, [f"{len(found)} hits", *found]))


def test_no_docstring_begins_with_a_question_or_points_elsewhere():
    found = list(hits(OPENINGS, TEXTS))
    assert len(found) <= MOST_OPENINGS, report(found)


def test_the_source_has_none_of_the_phrases():
    found = list(hits(PHRASES, TEXTS))
    assert len(found) <= MOST_PHRASES, report(found)


def test_the_pages_have_none_of_the_phrases():
    found = list(hits(PHRASES, PAGES))
    assert len(found) <= MOST_PHRASES_OF_PAGES, report(found)


def test_first_lines_are_imperatives_or_noun_phrases():
    found = list(first_lines(TEXTS))
    assert not found, report(found)


def test_errors_have_one_grammar():
    found = [hit for path, words in FILES.items() for hit in errors(path, words)]
    assert not found, report(found)


class TestTheseTestsThemselves:
    """Each rule finds its own example, where it stands, and leaves the good sentence alone."""

    @pytest.mark.parametrize("pattern", [*OPENINGS, *PHRASES], ids=lambda p: p.name)
    def test_a_pattern_finds_its_example_alone(self, pattern):
        assert list(matches(pattern, pattern.bad))
        assert not list(matches(pattern, pattern.good))

    @pytest.mark.parametrize("pattern", OPENINGS, ids=lambda p: p.name)
    def test_an_opening_is_found_in_every_docstring(self, pattern):
        texts = f'"""{pattern.bad}"""\nclass A:\n  """{pattern.bad}"""\n  def _f(self):\n'
        texts += f'    """{pattern.bad}"""\n  x: int\n  """{pattern.bad}"""\n'
        found = list(hits([pattern], texts_of_source("a.py", texts)))
        assert [hit.line for hit in found] == [1, 3, 5]  # a string below a field is not a docstring

    @pytest.mark.parametrize("pattern", PHRASES, ids=lambda p: p.name)
    def test_a_phrase_is_found_in_every_kind_of_text(self, pattern):
        broken = pattern.bad.replace(" ", "\n    ")
        texts = {
            DOCSTRING: f'def f():\n    """Do.\n\n    {broken}\n    """\n',
            COMMENT: "x = 1\n" + "".join(f"# {word}\n" for word in pattern.bad.split()),
            MESSAGE: f"raise E(f'{{x}}' {pattern.bad!r})\n",
        }
        for kind, text in texts.items():
            found = list(hits([pattern], texts_of_source("a.py", text)))
            assert bool(found) == (kind in pattern.where), kind
        assert bool(list(hits([pattern], texts_of_page("a.md", broken)))) == (
            PROSE in pattern.where
        )

    def test_code_of_a_page_is_left_out(self):
        page = (
            "Text `he is no` and\n\n```python\nhe is no x\n```\n\n- one\n- that he\n  is no two\n"
        )
        found = list(hits(PHRASES, texts_of_page("a.md", page)))
        assert [(hit.rule, hit.line) for hit in found] == [("is no", 9), ("he", 8)]

    def test_a_hit_names_the_line_and_the_reason(self):
        text = 'def f():\n    """Do it.\n\n    It\n    is no attack.\n    """\n'
        (hit,) = hits(PHRASES, texts_of_source("a.py", text))
        assert str(hit).startswith("a.py:5: is no: 'is no")
        assert hit.reason in str(hit)

    @pytest.mark.parametrize(
        "line",
        [
            "Project `delta` onto the ball.",
            "Return whether all samples succeeded.",
            "Suppress warnings.",
            "Warn of probabilities.",
            "Embed the message.",
        ],
    )
    def test_imperatives(self, line):
        assert is_imperative(line)

    @pytest.mark.parametrize(
        "line",
        [
            "The distance to the boundary.",
            "`x` inside the bounds.",
            "One pass through the model.",
            "Adversarial examples, `(n, *features)`.",
            "Mean of the rows.",
            "Probability of a label.",
            "Sends samples with their numbers.",
            "True if the model rejects.",
            "Rejected, since it is late.",
            "Drawing of the table.",
            "With a start, go on from it.",
            "As `search`, by labels.",
        ],
    )
    def test_what_is_not_imperative(self, line):
        assert not is_imperative(line)

    @pytest.mark.parametrize(
        ("text", "fault"),
        [
            ('"""Return losses."""', NOUN_REASON),
            ('"""Losses."""', None),
            ('"""Losses"""', "full stop"),
            ('"""Losses over\ntwo lines."""', "full stop"),
            ('class A:\n    """Sends samples."""', NOUN_REASON),
            ('class A:\n    """A sender."""', None),
            ('class A:\n    """Draws of random numbers."""', None),
            ('class A:\n    """Draw numbers."""', NOUN_REASON),
            ('class A:\n    """Set of numbers."""', None),
            ('def f():\n    """The mean."""', REASON),
            ('def f():\n    """Return the mean."""', None),
            ('class A:\n @property\n def f(self):\n    """Return the mean."""', NOUN_REASON),
            ('class A:\n @property\n def f(self):\n    """Mean of the rows."""', None),
        ],
    )
    def test_first_lines(self, text, fault):
        found = [hit.reason for hit in first_lines(texts_of_source("a.py", text))]
        assert len(found) == (fault is not None)
        assert fault is None or fault in found[0]

    @pytest.mark.parametrize(
        ("message", "fault"),
        [
            ('"`eps` must be positive, got -1."', None),
            ('f"{argument(name)} must be positive, got {value}."', None),
            ('f"{name} must be positive, got {value}."', "backticks"),
            ('"eps must be positive."', "backticks"),
            ('f"{path} must hold images."', None),
            ('"`eps` must be positive, got -1"', "full stop"),
            ('f"`eps` must be positive, " f"got {value}"', "full stop"),
            ('f"`p` must sum to 1, got {p}. {way_out}"', None),
            ('f"`path` must hold a model. onnxruntime raised: {error}"', None),
            ('"`p` must sum to 1, " + more', "full stop"),
            ('"the model returned NaN"', None),
            ('"eps must be 1." if one else "`eps` must be 2."', "backticks"),
        ],
    )
    def test_errors(self, message, fault):
        for kind in ("ValueError", "TypeError"):
            found = [hit.reason for hit in errors("a.py", f"raise {kind}({message})")]
            assert len(found) == (fault is not None)
            assert fault is None or fault in found[0]
        assert not list(errors("a.py", f"raise KeyError({message})"))
