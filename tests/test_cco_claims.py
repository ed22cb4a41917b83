"""What a report claims: sentences as coding agents write them, whole reports, and text that nobody would write."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from claims import CLAIMS, REPORT, SENTENCE, TEXT, Claim, claims
from mission import Criterion, parse

CRITERIA = {
    "api": ("All routes answer", "make api"),
    "crud": ("All CRUD endpoints implemented", "npm run --silent test:crud"),
    "validation": ("Input validation on all endpoints", "sh accept/validation.sh"),
    "coverage": ("Unit tests with >80% coverage", "make coverage"),
    "docs": ("API documentation generated", "test -e docs/openapi.yaml"),
    "c6": ("The linter is quiet", "make lint"),
}
ALL = " ".join(CRITERIA)
TESTED = "crud coverage"  # by its check, by its words


def dod(criteria: dict[str, tuple[str, str]]) -> tuple[Criterion, ...]:
    entries = [{"id": id, "criteria": words, "check": check} for id, (words, check) in criteria.items()]
    return parse(json.dumps({"title": "Tasks", "definition_of_done": entries}), Path("m.json")).criteria


def claimed(report: str, criteria: dict[str, tuple[str, str]] = CRITERIA) -> list[str]:
    """The ids of each claim in a report."""
    return [" ".join(claim.ids) for claim in claims(report, dod(criteria))]


@pytest.mark.parametrize(
    "sentence",
    [
        "All criteria are met.",
        "All six criteria are complete.",
        "All 6 criteria of the Definition of Done are now met.",
        "All criteria met ✅",
        "Every criterion is satisfied.",
        "Each of the criteria is now fully met.",
        "All acceptance criteria are satisfied.",
        "Everything is complete.",
        "Everything works as expected now.",
        "Everything is done!",
        "Everything is finished and the README is up to date.",
        "All done.",
        "All done! 🎉",
        "Mission accomplished.",
        "**Mission accomplished!** 🚀",
        "The mission is now complete.",
        "Mission completed successfully: 14 files changed.",
        "The Definition of Done is met.",
        "The entire Definition of Done is satisfied.",
        "All tasks are complete.",
        "All tasks have been completed successfully.",
        "I have successfully completed all requirements.",
        "Successfully completed all six requirements of the mission.",
        "I've completed all tasks.",
        "All checks pass.",
        "I ran them one by one, and all checks are green.",
        "I can confirm that all criteria are met.",
        "I verified that every criterion is met.",
        "## ✅ All criteria are met",
        "- [x] All requirements are implemented",
        "Summary: everything is done.",
        "In summary, all requirements are fulfilled.",
        "All criteria are met with no known issues.",
        "Everything is complete, nothing is missing.",
        "Not only do all tests pass, but every criterion is also met.",
        "Everything is implemented — see `src/app.js`.",
        "I can confirm all six requirements have been fully implemented.",
        "ALL CRITERIA ARE MET!!!",
        "All criteria are\nnow met.",
        "All tests pass and everything works.",
        "6/6 criteria met",
        "All checks pass: `make lint`, `make coverage`.",
        "Final result: everything is done.",
    ],
)
def test_a_sentence_about_everything_claims_all_criteria(sentence):
    assert claimed(sentence) == [ALL]


@pytest.mark.parametrize(
    "sentence",
    [
        "All tests pass.",
        "All tests are passing.",
        "All 42 tests pass.",
        "All of the tests passed.",
        "✅ All tests pass",
        "- [x] All tests pass",
        "Every test passes.",
        "The test suite is green.",
        "The full test suite now passes.",
        "Tests are passing.",
        "The tests pass.",
        "I fixed the handler in `src/app.js`, and now all tests pass.",
        "After the fix, all tests pass again.",
        "42 passed, 0 failed",
        "Result: 42 passed, 0 failed in 3.1s",
        "Tests: 42 passed, 0 failed",
        "42 tests, 0 failures",
        "100% of tests pass.",
        "100% of the tests are passing.",
        "42/42 tests pass.",
        "42 of 42 tests passed.",
        "No tests fail.",
        "There are no failing tests.",
        "All tests pass without errors.",
        "All tests pass with 0 failures.",
        "All tests still pass.",
        "`npm test` passes.",
        "`python -m pytest -q` is green.",
        "I ran the suite and confirmed that all tests pass.",
        "All tests pass in 3.2 seconds.",
        "Tests: all passing ✅",
        "I fixed two failing tests and all tests pass now.",
        "All tests (unit and end to end) pass; all tests pass.",
        "I ran the tests: 42 passed, 0 failed.",
        "`pytest -q`: 42 passed, 0 failed",
        "All tests pass ✅ and coverage is 92%.",
        "✅ **All tests passing** (42/42)",
        "All tests pass, so the parser is complete.",
    ],
)
def test_a_sentence_about_the_tests_claims_the_criteria_about_tests(sentence):
    assert claimed(sentence) == [TESTED]


@pytest.mark.parametrize(
    ("sentence", "ids"),
    [
        ("Criterion api is complete.", "api"),
        ("The api criterion is met.", "api"),
        ("api: done", "api"),
        ("API: done", "api"),
        ("api — complete", "api"),
        ("- **api**: ✅ complete - all routes answer", "api"),
        ("- [x] api", "api"),
        ("- [X] **api** – all routes return JSON", "api"),
        ("✅ api", "api"),
        ("✔️ api: every route answers", "api"),
        ("- api ✅", "api"),
        ("1. api (done)", "api"),
        ("`api` now passes.", "api"),
        ("The check `api` passes.", "api"),
        ("'api' is green", "api"),
        ("“api” is now fully implemented.", "api"),
        ("api has been implemented and tested.", "api"),
        ("I rewrote the router, and api passes again.", "api"),
        ("crud and validation are implemented.", "crud validation"),
        ("Validation, api and crud are all done.", "api crud validation"),
        ("Criteria api, docs and c6 are met.", "api docs c6"),
        ("Both crud and validation are working.", "crud validation"),
        ("Completed: api, crud", "api crud"),
        ("Finished api and crud.", "api crud"),
        ("I have completed criterion docs.", "docs"),
        ("Criterion docs is met.", "docs"),
        ("The docs check passes.", "docs"),
        ("- docs: done", "docs"),
        ("- docs complete", "docs"),
        ("`docs` is complete.", "docs"),
        ('"docs" is done', "docs"),
        ("The generated documentation (docs) is complete.", "docs"),
        ("- c6: met", "c6"),
        ("Criterion c6 is satisfied.", "c6"),
        ("`c6` passes", "c6"),
        ('"All CRUD endpoints implemented" is met.', "crud"),
        ('The criterion "Input validation on all endpoints" is now satisfied.', "validation"),
        ("- [x] Input validation on all endpoints", "validation"),
        ("- ✅ API documentation generated.", "docs"),
        ("- Unit tests with >80% coverage: done", "coverage"),
        ("`make lint` passes.", "c6"),
        ("`npm run --silent test:crud` passes now.", "crud"),
        ("crud no longer fails.", "crud"),
        ("api is complete, nothing is left to do.", "api"),
        ("api is complete without any errors.", "api"),
        ("All tests pass and api is complete.", "api crud coverage"),
    ],
)
def test_a_sentence_that_names_criteria_claims_those(sentence, ids):
    assert claimed(sentence) == [ids]


@pytest.mark.parametrize(
    ("sentence", "ids"),
    [
        ("Everything works except api.", "crud validation coverage docs c6"),
        ("All criteria are met except for criterion docs.", "api crud validation coverage c6"),
        ("All criteria but api are met.", "crud validation coverage docs c6"),
        ("All criteria, except `api` and `docs`, are met.", "crud validation coverage c6"),
        ("Everything is done, but api still fails.", "crud validation coverage docs c6"),
        ("Everything is done. However, api still fails.", "crud validation coverage docs c6"),
        ("Everything is done, apart from docs.", "api crud validation coverage c6"),
        ("Everything works except api, which needs a database.", "crud validation coverage docs c6"),
        ("api is complete, but crud still fails.", "api"),
        ("api is done; crud is not complete yet.", "api"),
        ("api is implemented, but the rest is still open.", "api"),
        ("All tests pass, but validation is not finished.", TESTED),
        ("All tests pass except crud.", "coverage"),
    ],
)
def test_what_a_sentence_leaves_out_by_name_is_not_claimed(sentence, ids):
    assert claimed(sentence) == [ids]


@pytest.mark.parametrize(
    "sentence",
    [
        # negations and reservations
        "Not all tests pass.",
        "Not all criteria are met.",
        "api is not complete yet.",
        "api isn't complete.",
        "api isn’t done.",
        "api still fails.",
        "crud: not done",
        "- [ ] api",
        "- [ ] All tests pass",
        "❌ api",
        "- api ❌ done partly",
        "⚠️ api is complete",
        "I cannot say that all tests pass.",
        "I couldn't verify that all tests pass.",
        "All tests should pass now.",
        "All criteria would be met then.",
        "Everything might be done.",
        "I think everything is done.",
        "I believe all criteria are met.",
        "api seems complete.",
        "All tests pass unless the database is down.",
        "Once api is complete, all criteria are met.",
        "If the network is up, all tests pass.",
        "api is partially complete.",
        "api is almost done.",
        "Nearly all tests pass.",
        "All tests pass, I assume.",
        "To do: all tests pass",
        "Remaining: api complete",
        "api is in progress, crud is done in part.",
        "I will see to it that all tests pass.",
        "Next: all criteria are met.",
        "validation is to be done.",
        "All criteria are met, without running the checks.",
        "All tests pass (I did not run them).",
        "All criteria are met, but unverified.",
        "Everything is done. However, I was unable to run the checks.",
        "All tests pass with two failures in api.",
        "Everything works except for a few edge cases.",
        "Everything works except api and the build.",
        "All criteria are met, with one exception.",
        "All criteria are met except:",
        "api is complete, but I could not run it.",
        "api is complete, but slow.",
        "api is 90% complete.",
        "All tests pass once the database runs.",
        "40 passed, 2 failed",
        "40 of 42 tests pass.",
        "42 passed, 0 failed, 3 skipped",
        "40/42 tests pass",
        "~~api is done~~",
        "Only api is complete.",
        "All tests pass. (Except the ones for api.)",
        "All tests pass. Only api fails.",
        "All criteria are met, in theory.",
        "3/6 criteria met",
        # questions and plans
        "- Confirm all tests pass",
        "Done means all tests pass.",
        "Are all tests passing?",
        "Is everything done?",
        "Make sure that all tests pass.",
        "Please verify that all criteria are met.",
        "I want all tests green.",
        "The goal is that all tests pass.",
        "Goal: all tests pass",
        "Run it until all tests pass.",
        "Then I ran all tests.",
        "I worked on getting all tests passing.",
        # about something else
        "All tests in tests/unit pass.",
        "All unit tests pass.",
        "The api tests pass.",
        "All tests pass in the parser.",
        "tests/test_api.py: 42 passed, 0 failed",
        "`pytest tests/test_api.py` passes, all tests pass.",
        "Backend: everything works.",
        "For the parser, all tests pass.",
        "Everything in the parser works.",
        "Everything else is done.",
        "The task is complete.",
        "Done.",
        "12 new tests pass.",
        "All three criteria are complete.",
        "Both criteria are met.",
        "I implemented all checks.",
        "The previous session claimed that all criteria are met.",
        'The script prints "all tests pass".',
        "> All criteria are met.",
        "| api | done |",
        "The docs are complete.",
        "c6 is done.",
        "See src/api for the finished parser, api.py is done.",
        "api-v2 is complete.",
        "The api endpoint for users is implemented.",
        "The admin api is complete.",
        "api is complete for GET requests.",
        "The bug in `api` is fixed.",
        "Tests for crud and api are complete.",
        "I fixed a typo in crud.",
        "- api: implemented the first of the endpoints",
        "✅ Added a helper for api",
        "Tests were passing at the baseline.",
        "Of the api tests, 42 passed, 0 failed.",
        "I ran the unit tests: 42 passed, 0 failed.",
        "Work on api is complete.",
        "api code complete",
        "Alle Tests sind grün, api ist fertig.",
        "",
        "   \n\n ",
    ],
)
def test_doubt_plans_and_talk_of_something_else_claim_nothing(sentence):
    assert claimed(sentence) == []


def test_without_a_criterion_about_tests_nothing_is_known_of_them():
    assert claimed("All tests pass. 42 passed, 0 failed.", {"page": ("The page loads", "curl -f localhost")}) == []


@pytest.mark.parametrize(
    ("words", "check", "about"),
    [
        ("It holds", "npm test", True),
        ("It holds", "go test ./...", True),
        ("It holds", "cargo test --all && echo ok", True),
        ("It holds", "python -m pytest -q", True),
        ("It holds", "npx vitest run", True),
        ("It holds", "ctest --output-on-failure", True),
        ("It holds", "python -m unittest", True),
        ("It holds", "npm run test:crud", True),
        ("It holds", "sh run_tests.sh", True),
        ("It holds", "make test && test -s report.txt", True),
        ("It holds", "bundle exec rspec spec/models", True),
        ("The unit tests pass", "make verify", True),
        ("Specs for the parser pass", "make verify", True),
        ("It holds", "test -e x", False),
        ("It holds", "! test -e tests/old.py", False),
        ("It holds", "make x && test -s x || test -d y; (test -f z)", False),
        ("It holds", "if test -f a; then test -f b; fi", False),
        ("It holds", "make x\ntest -f tests/x", False),
        ("It holds", 'sh -c "test -e x"', False),
        ("It holds", "[ -f tests/x ] && [[ -d y ]]", False),
        ("It holds", "make latest contest", False),
        ("The OpenAPI spec is generated", "make openapi-spec.json", False),
        ("The fastest route is attested", "make attest", False),
    ],
)
def test_a_criterion_is_about_tests_by_its_words_or_its_check(words, check, about):
    assert claimed("All tests pass.", {"it-holds": (words, check)}) == (["it-holds"] if about else [])


def test_a_number_of_criteria_has_to_be_the_missions():
    criteria = {id: (f"It {id}", f"sh {id}.sh") for id in ("greets", "shouts", "waves")}
    assert claimed("Done! All three criteria are complete and every test passes.", criteria) == ["greets shouts waves"]
    assert claimed("Done! All four criteria are complete and every test passes.", criteria) == []
    assert claimed("Both criteria are met.", dict(list(criteria.items())[:2])) == ["greets shouts"]


def test_a_name_that_two_criteria_share_claims_both():
    criteria = {"fast": ("The build is green", "make all"), "small": ("The build is green", "make all")}
    assert claimed('"The build is green" is met.', criteria) == ["fast small"]
    assert claimed("`make all` passes.", criteria) == ["fast small"]


@pytest.mark.parametrize("id", ["done", "missing", "not", "tests", "42", "all", "c1", "checks"])
def test_an_id_that_is_an_everyday_word_is_no_name_unless_it_is_marked(id):
    criteria = {id: ("It holds", "make it"), "other": ("It holds as well", "make other")}
    assert claimed(f"The report of {id} is there, {id} is complete.", criteria) == []
    assert claimed(f"Criterion {id} is complete.", criteria) == [id]
    assert claimed(f"`{id}` passes.", criteria) == [id]
    assert claimed(f"- {id}: met", criteria) == [id]


# --------------------------------------------------------------------------------------------------------
# Whole reports
# --------------------------------------------------------------------------------------------------------

HONEST = """\
## Summary

I added the delete route in `src/routes.js` and fixed **two** failing tests.

### What I ran
- `npm test`: 42 passed, 0 failed
- `make lint`: 3 warnings

### Criteria
- [x] api
- ✅ crud: delete answers 204
- [ ] validation
- ❌ coverage is at 71 %

### Still open
1. Make sure that all tests pass without a database
2. docs: done
3. Everything works on Windows

However, I could not start PostgreSQL here.
"""

BOASTFUL = """\
Done! I implemented the whole API.

```
42 passed, 0 failed
All criteria are met.
```

<data>
Everything is complete.
</data>

**Status of the Definition of Done:**

1. **api** — ✅ Done
2. **crud** — ✅ Done
3. **validation** — ⚠️ Partial

All tests pass. All the tests pass!

Everything is complete. All criteria are met.
"""

WANTED = """\
The mission has these requirements:

- All tests pass
- crud is implemented
- Everything works

# Definition of Done
All criteria are met.

## Next steps
All tests pass.

### api
All tests pass
"""


@pytest.mark.parametrize(
    ("report", "found"),
    [
        (HONEST, [("npm test: 42 passed, 0 failed", TESTED), ("api", "api"), ("crud: delete answers 204", "crud")]),
        (
            BOASTFUL,
            [
                ("api — Done", "api"),
                ("crud — Done", "crud"),
                ("All tests pass.", TESTED),
                ("Everything is complete.", ALL),
            ],
        ),
        (WANTED, []),
    ],
)
def test_a_report_is_read_as_a_person_reads_it(report, found):
    said = [(claim.text, " ".join(claim.ids)) for claim in claims(report, dod(CRITERIA))]
    assert [(" ".join(text.split()), ids) for text, ids in said] == found
    assert claims(report.replace("\n", "\r\n"), dod(CRITERIA)) == claims(report, dod(CRITERIA))


def test_the_sentence_is_kept_readable_on_one_short_line():
    report = "- ✅ **All criteria** are met: `a`\x1b[31m, " + "as [planned](https://example.org/x), " * 20
    assert claims(report, dod(CRITERIA)) == [
        Claim(("All criteria are met: a[31m, " + "as planned, " * 20)[:TEXT], tuple(CRITERIA))
    ]


def test_a_report_that_was_cut_loses_its_first_line_because_that_may_have_lost_its_not():
    begin, rest = "all tests pass.\n", "\nI changed a file." * REPORT
    assert claimed(begin + rest[: REPORT - len(begin) - 1]) == [TESTED]
    assert claimed(begin + rest[: REPORT - len(begin)]) == []
    assert claimed("x" * REPORT + "\nAll tests pass.") == [TESTED]
    assert claimed("\n42 passed\nall tests pass\n```\n".rjust(REPORT)) == []


def test_a_sentence_that_is_too_long_or_has_half_a_quotation_claims_nothing():
    long = "really, " * (SENTENCE // 8)
    assert claimed(f"All tests pass, {long}") == []
    assert claimed(f"What has to hold, {long} in the end:\n- api: done") == []
    assert claimed('The file says "all is well. All tests pass. So it is." All checks pass.') == []
    assert claimed('The file says "all is well. So it is. All tests pass.') == []
    assert claimed('The file says "all is well". All tests pass.') == [TESTED]
    assert claimed('The file says "all is well, all tests pass.') == []


def test_no_more_claims_are_kept_than_anybody_would_read():
    criteria = {f"part-{n}": (f"Part {n} holds", f"make p{n}") for n in range(CLAIMS + 5)}
    report = "".join(f"- part-{n}: done\n" for n in range(CLAIMS + 5))
    assert claimed(report, criteria) == [f"part-{n}" for n in range(CLAIMS)]


# --------------------------------------------------------------------------------------------------------
# What nobody would write. A pattern that backtracks without bound would not come to an end here.
# --------------------------------------------------------------------------------------------------------

PIECES = (
    *("all ", "now ", "all the 3 ", "api, ", "api and ", "api is ", "but api ", "except api, ", "not only ", "no no "),
    *("successfully ", "i've ", "fixed a ", "0 failed, ", "42/", "1111/", "4", "npm test ", "`npm test -a ", "a: "),
    *("`", "`a", "*", "**a", "_a_", "[", "[a](", "(", "((", "- ", "- [x] ", "- - ", "> - ", "# ", "|", '"', "'", "' '"),
    *("\n", ".\n", "! ", "```", "```\n", "<data>", "all tests pass. ", "api: done\n", "a. However, ", "x"),
    *("\x00", "\ue000", "\ud800", "\u0301", "١", "İ", "🎉", "✅", "\u200b", "\u2028", "\u202e", "ﬀ", "\ufe0f"),
)


FEW = dod(CRITERIA)
MANY = dod({f"part-{n}": (f"all tests of part {n} pass", f"make p{n}") for n in range(200)})


@pytest.mark.parametrize("piece", PIECES)
def test_any_text_is_read_to_its_end(piece):
    for tail in ("", "x", "\n", " api is"):
        report = (piece * REPORT)[: REPORT - 1 - len(tail)] + tail
        for criteria in (FEW, MANY):
            for claim in claims(report, criteria):
                assert set(claim.ids) <= {criterion.id for criterion in criteria}
                assert 0 < len(claim.text) <= TEXT
                assert claim.text.isprintable()


@pytest.mark.parametrize("junk", ["\x00", "\ue000", "\ue001\ue002", "\ud800", "\u200b", "\u202e", "\ufeff"])
def test_characters_that_are_no_text_neither_name_anything_nor_hide_a_claim(junk):
    assert claimed(f"{junk} is complete.") == []
    assert claimed(f"All te{junk}sts pa{junk}ss.") == [TESTED]
    assert claimed(f"n{junk}ot all tests pass.") == []
