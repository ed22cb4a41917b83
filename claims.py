"""What a worker's report claims is finished, to be held against the verdicts of the checks. No files, no processes.

    for claim in claims.claims(outcome.report, mission.criteria):
        print(claim.ids, claim.text)

A report is read sentence by sentence. A sentence claims all criteria ("everything is done"), those about tests
("all tests pass") or those that it names ("api is complete"). In doubt nothing is claimed, because a worker accused
of a boast that it did not make is worse than a boast missed: a boast must fill its clause, and any "not", "should",
"if" or "but" spoils the whole sentence, unless it only names criteria that are left out.

What is not covered: languages other than English; tables, quotations, code; paraphrases ("ready to ship"); boasts about
a part ("all unit tests pass"); criteria called by number, or otherwise than by id, full text or check; a claim that
another sentence takes back, unless that one follows at once and begins with "However" or the like.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from mission import Criterion

REPORT = 8000  # characters of a report that are read, its last ones; a session's report is cut there
SENTENCE = 600  # characters; a longer one claims nothing
TEXT = 160  # characters of a sentence that are kept
CLAIMS = 20  # in one report

# --------------------------------------------------------------------------------------------------------
# The words of a boast. Each criterion that a sentence names has become one character from FIRST on.
# --------------------------------------------------------------------------------------------------------

FIRST = 0xE000  # of Unicode's private use area, which is taken out of every report
NAME = "[\ue000-\uf8ff]"
NAMES = rf"{NAME}(?:(?:, and |, | and | & ){NAME})*"
KIND = r"(?:criteri(?:on|a)|checks?)"
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
DONE = (
    r"(?:completed?|done|met|satisfied|fulfilled|implemented|finished|achieved|resolved|fixed|verified|proven|working"
    r"|works?|pass(?:es|ed|ing)?|green|✓)"
)
PASS = r"(?:pass(?:es|ed|ing)?|green|succeed(?:s|ed)?|✓)"
DID = r"(?:completed|finished|fulfilled|satisfied|met|achieved)"
SO = (
    r"(?:(?:is|are|has|have|been|was|were|now|all|both|also|still|again|already|finally|fully|completely|entirely"
    r"|successfully|100%|✓) )*"
)
SELF = r"(?:(?:i|we|i've|we've|have|has|successfully|also|now|fully) )*"
# What stands before or behind a boast narrows it down: "the parser's tests pass", "all tests pass in the parser".
START = (
    rf"(?:^|(?<!{NAME}), |[;:(.!] ?| [-–—] |(?<!{NAME} )\band |\bnow "
    r"|\b(?:i confirm|can confirm|confirmed|verified|ensured|checked|validated|showed|this means|that means|to report)"
    r"(?: that)? )(?:now )?"
)
END = (
    r"(?=\W*$|\s*[,.;:!)–—✓]|\s-|\s\((?:\d|the test suite)|\s(?:and|now|again|too|successfully|with|after|since|because"
    r"|as|thanks|in \d|its checks?|their checks)\b)"
)
EACH = (
    rf"(?:(?:all|every|each)(?: one)?(?: of)?(?: the| our| my)?(?: (?P<count>\d+|{'|'.join(NUMBERS)}))?"
    r"|(?P<both>both)|(?:all )?(?P<run>\d+)(?:/| of | out of )(?P=run)(?: the| our)?)"
    r"(?: acceptance| mission| required)?"
)
GOALS = (
    r"(?:criteri(?:on|a)|requirements?|tasks?|goals?|objectives?|deliverables?)"
    r"(?: (?:of|in|from) the (?:mission|definition of done|dod))?"
)
EVERYTHING = [
    re.compile(f"{START}(?:{boast}){END}")
    for boast in (
        rf"everything {SO}(?:completed?|done|finished|implemented|works|working)|all done",
        rf"{EACH} {GOALS} {SO}{DONE}",
        rf"{EACH} checks? {SO}(?:{PASS}|met|satisfied)",
        rf"{SELF}{DID} {EACH} {GOALS}",
        rf"(?:the )?mission {SO}(?:accomplished|completed?|done|finished|achieved)",
        rf"(?:the )?(?:full |entire |whole )?(?:definition of done|dod) {SO}{DONE}",
    )
]
TESTS = re.compile(
    rf"{START}(?:(?:all|every|each)(?: one)?(?: of)?(?: the| our| my)?(?: \d+| counted)? tests?"
    rf"|100% of (?:the |all )?tests|(?:all )?(?P<run>\d+)(?:/| of | out of )(?P=run) tests?|(?:the |our )?tests"
    rf"|(?:the |our )?(?:full |entire |whole |complete )?test suite):? {SO}{PASS}{END}"
)
NAMED = [
    re.compile(pattern)
    for pattern in (
        rf"{START}(?:the |both |all )?(?:{KIND}:? )?({NAMES})(?: {KIND})?(?: ?[:=→–—(-]+)? ?{SO}{DONE}{END}",
        rf"^[^,;:()]+ \(({NAMES})\):? {SO}{DONE}{END}",
        rf"^{SELF}(?:{DID}|complete|done|passing)(?: so far)?:? (?:the )?(?:{KIND}:? )?({NAMES})(?: {KIND})?{END}",
    )
]
LABEL = re.compile(rf"^(?:for |the )?(?:{KIND} )?({NAMES})(?: {KIND})?(?=\W*$|\s*[:(,–—]|\s-)")
PREFIX = re.compile(  # "Backend: everything works" is about the backend, "Result: everything works" is not
    r"^(?!(?:(?:the|all|final|test|overall|current) )*(?:done|results?|summary|status|tests?|suite|pytest|jest"
    r"|vitest|verification|overall|conclusion|outcome|good news|tl;dr)(?::| [-–—]))"
    r"((?:[^\s:]+ ){0,2}[^\s:]+)(?::| [-–—]) .*"
)
ASIDE = re.compile(r"^(?:as for|for|in|on|of|at|within|under|inside|regarding) (?!summary|short|total|conclusion)")
# Beside "42 passed, 0 failed": whose tests these were.
WHOSE = re.compile(rf"{NAME}|\bcode\b|\b(?!(?:the|all|our|my|full|entire|whole|counted|ran|run) )\w+ tests?\b")
WANTED = re.compile(r"\b(?:requirements?|criteria|definition of done|dod|goals?|objectives?|mission|asked)\b")
REACHED = re.compile(rf"\b(?:status|summary|results?|progress|{DONE})(?!\w)")

# --------------------------------------------------------------------------------------------------------
# The words that take it back
# --------------------------------------------------------------------------------------------------------

TURN = (
    r"(?:however|but|except|although|though|unfortunately|that said|(?:one )?caveats?|only|apart from"
    r"|other than|aside from|(?:one |the )?exceptions?|yet|unless)\b"
)
DOUBT = re.compile(
    r"\b(?:not|never|no|none|nothing|neither|nor|cannot|without|fail\w*|broken|breaks?|missing|incomplete|unmet|red"
    r"|should|would|could|might|may|maybe|perhaps|probably|likely|possibly|presumably|apparently|supposedly|seems?"
    r"|appears?|think|believe|expect\w*|hope\w*|assum\w+|guess|suppose\w*|once|if|whether|until|till|before|when"
    r"|whenever|where|so that|as (?:soon|long|far) as|provided|partial\w*|partly|part of|almost|nearly|mostly|largely"
    r"|roughly|basically|practically|virtually|half|some|most|many|several|few|at least|to-?dos?|to do|to be|open"
    r"|outstanding|remain\w*|in progress|will|shall|going to|next|later|soon|pending|left|unable"
    r"|un(?:verified|tested|finished|known|clear|resolved)|in (?:theory|principle)|minus|modulo|more or less|skip\w*"
    r"|blocked|stuck|attempt\w*|try|trying|tried|plan\w*|wants?|need(?:s|ed)?|must|requires?|let's|in order to|aim\w*"
    r"|mak(?:e|ing) sure|please|ensure|wait\w*|excluding|besides|while|save for|whereas|otherwise|despite|said|says"
    r"|claim\w*|according to|previous|earlier|baseline|originally|initially|(?:was|were) (?:passing|green|working)"
    r"|mock\w*|stub\w*|placeholders?|dummy|with (?:\w+ )?(?:errors?|warnings?|issues|problems|gaps))\b"
    rf"|\b{TURN}|n't\b|'ll\b|\?|~~|\[.?\]|❌"
    r"|\b(\d+)(?:/| of | out of )(?!\1\b)\d+|\b(?!100\b)\d+ ?% (?:completed?|done|finished|of|pass\w*)"
)
NO, SOME, COUNTED = "(?:no|zero|0)", r"[1-9]\d*", "all counted tests pass"
TROUBLE = (
    r"(?:known |open |remaining |other |new |lint |type )?"
    r"(?:errors?|failures?|warnings?|issues?|problems?|regressions?|failed|failing|skipped|todos?)"
)
FINE = [  # what sounds like doubt and is none, and how it is read
    (re.compile(pattern), instead)
    for pattern, instead in (
        (rf"\b{SOME}(?: tests?)? pass(?:ed|ing)?[,;]?(?: and| with)? {NO}(?: tests?)? fail\w*", COUNTED),
        (rf"\b{NO}(?: tests?)? failed[,;]?(?: and)? {SOME}(?: tests?)? passed", COUNTED),
        (rf"\b{SOME} (?:tests|examples|specs)[,;]?(?: and| with)? {NO} failures", COUNTED),
        (r"\bno tests? (?:(?:are|is|have|has) )?fail\w*|\b(?:there are )?no failing tests", "all tests pass"),
        (rf",? ?\b(?:(?:with|and|there (?:are|were)) )?(?:{NO}|without(?: any)?) {TROUBLE}\b(?: remain\w*| left)?", ""),
        (r",? ?\b(?:and )?nothing (?:is |was )?(?:missing|broken|outstanding|left(?: to do)?|remain(?:s|ing))\b", ""),
        (r"\bno longer fail\w*", "passes"),
        (r" as (?:expected|planned|intended|needed)\b", ""),
        (r"\bfixed (?:(?:the|a|all|both|two|three|\d+) )?(?:failing tests?|failures?)", "fixed"),
        (r"\bnot only (?:(?:do|are|is) )?([^,]*),? but(?: also)?\b", r"\1 and"),
    )
]
OUT = r"(?:except(?: for)?|but|excluding|besides|apart from|other than|aside from|save for|with the exception of)"
EXCEPTIONS = [  # none; "all criteria but api are met", "everything works except api"; "all is done, but api fails"
    re.compile(pattern)
    for pattern in (
        r"(?!)",
        rf",? \b{OUT} (?:the )?(?:{KIND} )?({NAMES})(?: {KIND})?"
        r"(?:,? (?:which|because|since|as)\b.*$|,?(?= (?:is|are|has|have|now|pass|work)\b)|[ .!)]*$)",
        rf"[,.]? ?(?:\b(?:but|however,?|although|though|while|whereas)|;) (?:the )?(?:{KIND} )?"
        rf"(?:({NAMES})|the (?:rest|others?)\b|everything else\b)(?:(?!,|;| and ).)*$",
    )
]

# --------------------------------------------------------------------------------------------------------
# Reports, names and commands
# --------------------------------------------------------------------------------------------------------

TICKS, CROSSES = "✅✔☑✓🟢", "❌✗✘✖⚠⏳🚧🔴🟡⛔🔲⬜☐"
PLAIN = str.maketrans("’‘“”" + TICKS + CROSSES, "''\"\"" + "✓" * len(TICKS) + "❌" * len(CROSSES), "\ufe0f")
UNREADABLE = "❌"  # a doubt, instead of a sentence that is too long or has half of a quotation
EMOJI = re.compile("[\U0001f000-\U0001faff✨⭐]")
MARK = re.compile(
    rf"(?P<heading>#{{1,6}} )?(?P<item>(?:[-*+•]|\d{{1,3}}[.)]) )? ?(?P<tick>\[[xX]\]|[{TICKS}])? ?(?P<text>.*)"
)
BOLD = re.compile(r"\s*\*\*[^*]{1,80}\*\*:?\s*")  # a heading in all but name
BEGINS = re.compile(rf"\W?{TURN}|(?P<fresh>(?:[^\s:]+ ){0, 3}[^\s:]+:)", re.I)
LINK = re.compile(r"\[([^\[\]]{1,200})\]\([^()\s]{0,300}\)")
EMPHASIS = re.compile(r"\*+(?=\S)|(?<=\S)\*+|(?<!\w)_+(?=\w)|(?<=\w)_+(?!\w)")
SPLIT = re.compile(rf"(?<=[.!?])(?<!e\.g\.)(?<!i\.e\.)(?<!etc\.)(?<!vs\.) (?!\W?{TURN})", re.I)
QUOTED = re.compile(r"""`([^`]+)`|"([^"]+)"|(?<!\w)'([^']+)'(?!\w)""")
STATED = re.compile(rf"\s*[:–—]|\s-|\s{SO}{DONE}(?!\w)")  # behind the name that a list item begins with
WORD = re.compile(r"(?<![\w/.@\\-])[a-z0-9][a-z0-9-]*(?![\w/@\\-]|\.\w)")
NEAR = ("criterion", "criteria", "check", "checks", "except", "excluding", "but", "for", "from")  # an id comes next
# An id that is one of these words, or very short, names its criterion only where it is marked as a name.
EVERYDAY = (
    " all and app application audit backend base bugs build builds cache check checks ci clean cleanup cli client code"
    " command config criteria criterion data database default demo deploy design docker docs documentation error"
    " errors every everything feature features files final fix fixes format frontend full function goal help"
    " implementation input install interface library list log logging login main migration mission module output page"
    " parser part plan product program project quality readme refactor release report requirement requirements result"
    " results run schema script search security server service settings setup smoke spec specs start state status"
    " suite task tasks test tested testing tests that the this tool type types unit update user users version web "
)
RUN = re.compile(
    r"(?:\S+ )*?(?:pytest|vitest|jest|ctest|tox|(?:npm|pnpm|yarn|bun|go|cargo|make|mvn|gradle|dotnet)(?: run)? test)"
    r"(?: -\S+| run| tests?/?| \./\.\.\.)*(?P<part>.*)"
)
BUILTIN = re.compile(r"""(?:^|[;&|({!\n"'`]|\b(?:if|then|else|elif|do|while|until|time)\s)\s*(?:test\s|\[)[^;&|\n)]*""")
ABOUT_TESTS = re.compile(
    r"(?<![a-z0-9])(?:tests?|tested|testing|pytest|unittests?|ctest|jest|vitest|mocha|rspec|phpunit|tox|cypress)(?![a-z0-9])"
    r"|(?<!api )(?<!swagger )(?<!the )(?<![a-z0-9-])specs?(?!\.(?:json|ya?ml|md|txt)|[a-z0-9])",
    re.I,
)


@dataclass(frozen=True)
class Claim:
    """What one sentence says is finished."""

    text: str  # the sentence, on one line, at most 160 characters
    ids: tuple[str, ...]  # the criteria that it says are met, in mission order


@dataclass
class _Part:
    """A heading, list item or paragraph; or one sentence of it."""

    text: str  # without markdown, on one line
    item: bool  # it begins a list item
    ticked: bool  # it begins with a check mark
    heading: bool = False  # it is one
    above: tuple[str, ...] = ()  # the heading and the lead-in ("Still open:") that a sentence stands under


def claims(report: str, criteria: Sequence[Criterion]) -> list[Claim]:
    """What a report says is met, in its order; the same criteria once, with the first sentence that says so."""
    found: dict[tuple[str, ...], Claim] = {}
    names = _names(criteria)
    for sentence in _sentences(report):
        claimed = _claimed(sentence, names, criteria)
        ids = tuple(c.id for n, c in enumerate(criteria) if chr(FIRST + n) in claimed)
        if ids and len(found) < CLAIMS:
            text = " ".join(re.sub(f"[`{TICKS}]", "", sentence.text).split())
            found.setdefault(ids, Claim(text[:TEXT], ids))
    return list(found.values())


def _claimed(sentence: _Part, names: Mapping[str, str], criteria: Sequence[Criterion]) -> set[str]:
    """The names of the criteria that a sentence says are met."""
    said = _spoken(sentence, names)
    for exception in EXCEPTIONS:
        rest = exception.sub("", said)
        if not DOUBT.search(rest):
            break
    else:
        return set()
    named, general = _named(rest, sentence.ticked), _general(rest, criteria)
    if not named | general:
        return set()
    above = [_spoken(_Part(text, False, False), names) for text in sentence.above]
    if any(DOUBT.search(text) for text in above):
        return set()
    wanted = any(WANTED.search(text) and not REACHED.search(WANTED.sub("", text)) for text in above)
    if wanted and not sentence.ticked and not LABEL.match(rest):
        return set()
    if any(LABEL.match(text) for text in above):
        general = set()
    return (named | general) - {name for match in exception.finditer(said) for name in match[1] or ""}


def _named(said: str, ticked: bool) -> set[str]:
    patterns = [*NAMED, LABEL] if ticked else NAMED
    return {c for p in patterns for m in p.finditer(said) for c in m[1] if ord(c) >= FIRST}


def _general(said: str, criteria: Sequence[Criterion]) -> set[str]:
    """The names that a boast about everything or about the tests covers."""
    if ASIDE.match(said) or re.search(rf"\({NAME}", said):
        return set()
    said = PREFIX.sub(r"\1", said)
    boasts = [match.groupdict() for match in (boast.search(said) for boast in EVERYTHING) if match]
    if boasts and all(_counts(boast, len(criteria)) for boast in boasts):
        return {chr(FIRST + n) for n in range(len(criteria))}
    if TESTS.search(said) and not ("counted" in said and WHOSE.search(said)):
        return {chr(FIRST + n) for n, c in enumerate(criteria) if _about_tests(c)}
    return set()


def _counts(boast: Mapping[str, str | None], criteria: int) -> bool:
    """Whether the number in "all three criteria" is the number of criteria."""
    number = "two" if boast.get("both") else boast.get("count") or boast.get("run")
    return number in (None, str(criteria), *NUMBERS[criteria : criteria + 1])


def _about_tests(criterion: Criterion) -> bool:
    return bool(ABOUT_TESTS.search(f"{criterion.criteria}\n{BUILTIN.sub(' ', criterion.check or '')}"))


def _names(criteria: Sequence[Criterion]) -> dict[str, str]:
    """The character of each criterion by its id, its full text and its check in backticks; several share one."""
    names: dict[str, str] = {}
    for n, criterion in enumerate(criteria):
        texts = (text for text in (_plain(criterion.criteria).rstrip(" .!"),) if " " in text)
        for key in (criterion.id, *texts, f"`{_plain(criterion.check or '')}`"):
            names[key] = f"{names[key]}, {chr(FIRST + n)}" if key in names else chr(FIRST + n)
    return names


def _spoken(part: _Part, names: Mapping[str, str]) -> str:
    """The text with each name as its character, quotations left out, and nothing that only sounds like doubt."""
    said = _plain(part.text)
    if len(said) > SENTENCE:
        return UNREADABLE
    for name in sorted(filter(said.startswith, names), key=len, reverse=True) if part.item else ():
        rest = said[len(name) :]
        if STATED.match(rest) or part.ticked and not rest.strip(" .!"):
            said = names[name] + rest
            break
    said = QUOTED.sub(lambda match: _unquoted(match, names), said)
    if '"' in said or "`" in said:
        return UNREADABLE
    said = _with_names(said, names).replace("[x]", "✓")
    for pattern, instead in FINE:
        said = pattern.sub(instead, said)
    return said.strip()


def _plain(text: str) -> str:
    """Lower case on one line, with the quotes that a keyboard has."""
    return " ".join(EMOJI.sub("", text.lower().translate(PLAIN)).split())


def _unquoted(quoted: re.Match[str], names: Mapping[str, str]) -> str:
    """What stands for something in quotes: a name, the run of a test suite, or something unknown."""
    said = (quoted[1] or quoted[2] or quoted[3]).strip(" .!,:")
    code = f"`{said}`" if quoted[1] else said
    if said in names or code in names:
        return names.get(said) or names[code]
    run = RUN.fullmatch(said)
    return "code" if not run else "part of the tests" if run["part"] else "the test suite"


def _everyday(word: str) -> bool:
    known = f" {word} " in EVERYDAY or DOUBT.fullmatch(word) or re.fullmatch(DONE, word)
    return bool(known) or len(word) <= 2 or word.isdigit()


def _with_names(said: str, names: Mapping[str, str]) -> str:
    out, end, near = "", 0, False
    for match in WORD.finditer(said):
        gap, word, after = said[end : match.start()], match[0], said[match.end() : match.end() + 8]
        marked = gap.endswith("(") and after.startswith(")") or re.match(" criteri| check", after)
        near = near and not gap.strip(" ,:&")
        if word in names and (near or marked or not _everyday(word)):
            word = names[word]
        else:
            near = word in NEAR or near and word in ("and", "the", "for")
        out, end = out + gap + word, match.end()
    return out + said[end:]


def _sentences(report: str) -> Iterator[_Part]:
    """Every sentence of a report outside of quotations, and what it stands under."""
    heading = lead_in = ""
    for part in _parts(report):
        if part.heading:
            heading = ""
        if not part.item:
            lead_in = ""
        texts, quoted = SPLIT.split(part.text), False
        for n, text in enumerate(texts):
            if not quoted:
                yield _Part(text, part.item and n == 0, part.ticked and n == 0, above=(heading, lead_in))
            quoted ^= _plain(text).count('"') % 2 == 1
        if part.heading:
            heading = part.text
        elif part.text.endswith(":"):
            lead_in = texts[-1]


def _parts(report: str) -> list[_Part]:
    """Headings, list items and paragraphs; one that begins with "However" belongs to the one before."""
    parts: list[_Part] = []
    flowing = False
    for raw in _lines(report):
        mark = MARK.match(" ".join(EMPHASIS.sub("", LINK.sub(r"\1", raw)).split()))
        if not mark or not mark[0]:
            flowing = False
            continue
        begin = BEGINS.match(mark["text"])
        heading, item = bool(mark["heading"] or BOLD.fullmatch(raw)), bool(mark["item"] or mark["tick"])
        new = heading or item or begin and begin["fresh"] or not flowing
        if parts and not parts[-1].heading and (not new or begin and not begin["fresh"]):
            parts[-1].text += " " + mark["text"]
        else:
            parts.append(_Part(mark["text"], item, bool(mark["tick"]), heading))
        flowing = not heading
    return parts


def _lines(report: str) -> Iterator[str]:
    """The lines that are the worker's own words; an empty one in place of code, data, tables and quotations."""
    text = "".join(c if c.isprintable() or c == "\n" else " " * c.isspace() for c in report[-REPORT:])
    lines = text.split("\n")[len(report) >= REPORT :]  # the first one may have lost its "not"
    until = "```" if len(report) >= REPORT and text.count("```") % 2 else ""
    for line in lines:
        if until:
            until = "" if until in line else until
        elif "```" in line:
            until = "```" if line.count("```") % 2 else ""
        elif "<data>" in line:
            until = "</data>" if line.rfind("<data>") > line.rfind("</data>") else ""
        elif not line.lstrip().startswith(("|", ">")):
            yield line
            continue
        yield ""
