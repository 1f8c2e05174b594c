"""Lists of requests are read as they are written, and whatever cannot be read is told by its line."""

from __future__ import annotations

import csv
import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from text2image.core.errors import InvalidRequest
from text2image.core.tables import (
    MAX_ROWS,
    Form,
    Row,
    crossed,
    form_of,
    parse_axis,
    parse_seeds,
    read_rows,
)

TABLE = 'prompt,steps,guidance_scale,seed,size,loras\n"a fox, red",4,2.5,7,96x64,ink:0.8 wool\n\na cat,,,,,\n'


def told(text: str, form: Form) -> list[tuple[str, str]]:
    with pytest.raises(InvalidRequest) as raised:
        read_rows(text, form)
    return [(violation.field, violation.reason) for violation in raised.value.violations]


def test_a_tables_cells_are_fields_in_their_types_and_empty_ones_are_left_out() -> None:
    assert read_rows(TABLE, Form.CSV) == [
        Row(
            2,
            {
                "prompt": "a fox, red",
                "steps": 4,
                "guidance_scale": 2.5,
                "seed": 7,
                "width": 96,
                "height": 64,
                "loras": ["ink:0.8", "wool"],
            },
        ),
        Row(4, {"prompt": "a cat"}),
    ]


def test_json_by_line_has_the_fields_of_a_table_and_lists() -> None:
    lines = [
        {"text": "a fox", "context": "night", "n": 2.0, "loras": [{"name": "ink", "weight": 0.5}]},
        {"prompt": "a cat", "negative_prompt": None},
    ]
    text = "\n".join(json.dumps(line) for line in lines)
    assert read_rows(text, Form.JSONL) == [
        Row(1, {"prompt": "a fox, night", "n": 2, "loras": ["ink:0.5"]}),
        Row(2, {"prompt": "a cat"}),
    ]


def test_a_text_has_a_prompt_a_line_but_for_comments() -> None:
    assert read_rows("\ufeffa fox\r\n\n# later\n  a cat\n", Form.TEXT) == [
        Row(1, {"prompt": "a fox"}),
        Row(4, {"prompt": "a cat"}),
    ]


@given(st.lists(st.text(min_size=1).filter(str.strip), min_size=1, max_size=5))
def test_any_prompts_come_back_from_a_table_as_they_are(prompts: list[str]) -> None:
    written = io.StringIO(newline="")
    csv.writer(written).writerows([["prompt", "steps"], *([prompt, "4"] for prompt in prompts)])
    # A delimiter is told by the first line alone, so that prompts may hold others.
    rows = read_rows(written.getvalue(), Form.CSV)
    assert [row.fields["prompt"] for row in rows] == prompts


@pytest.mark.parametrize(
    ("name", "text", "form"),
    [
        ("a.csv", "", Form.CSV),
        ("a.jsonl", "", Form.JSONL),
        ("a.txt", "{}", Form.TEXT),
        ("-", '{"prompt": "a fox"}', Form.JSONL),
        ("-", "prompt;seed\na fox;1", Form.CSV),
        ("-", "prompt", Form.CSV),
        ("-", "a fox, prompt", Form.TEXT),
    ],
)
def test_the_form_is_told_by_the_name_or_by_the_first_line(
    name: str, text: str, form: Form
) -> None:
    assert form_of(name, text) is form


def test_whatever_is_wrong_is_named_by_its_line() -> None:
    lines = (
        '{"prompt": "a", "steps": "many"}\n{"steps": 3}\n{"prompt": 3}\n[1]\n{"promt": "a"}\nnot'
    )
    assert [field for field, _ in told(lines, Form.JSONL)] == [
        "line 1",
        "line 2",
        "line 3",
        "line 4",
        "line 5",
        "line 5",
        "line 6",
    ]
    ((field, reason),) = told("prompt,steps\na,4.5\n", Form.CSV)
    assert (field, reason) == ("line 2", "steps is '4.5', and no whole number")
    assert told("prompt\na,b,c\n", Form.CSV) == [("line 2", "has 3 cells, and there are 1 columns")]
    assert "no prompt" in told("words\na\n", Form.CSV)[0][1]
    assert told("\n\n", Form.TEXT)[0][0] == "prompts"


def test_each_row_is_crossed_with_all_values_the_last_axis_fastest() -> None:
    rows = [Row(1, {"prompt": "a"}), Row(2, {"prompt": "b", "steps": 9})]
    axes = [parse_axis("loras", ["ink:0.4", "ink:0.8"]), parse_seeds("1-2,7")]
    made = crossed(rows, axes, {"steps": 4})
    assert len(made) == 12
    assert made[0] == Row(1, {"prompt": "a", "steps": 4, "loras": ["ink:0.4"], "seed": 1})
    assert [row.fields["seed"] for row in made[:6]] == [1, 2, 7, 1, 2, 7]
    assert {row.fields["steps"] for row in made[6:]} == {9}


def test_what_would_be_too_many_or_said_twice_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="at most"):
        crossed([Row(1, {"prompt": "a"})] * 2, [parse_seeds(f"1-{MAX_ROWS}")], {})
    with pytest.raises(InvalidRequest, match="line 3: names seed"):
        crossed([Row(3, {"prompt": "a", "seed": 1})], [parse_seeds("1-2")], {})


@pytest.mark.parametrize("seeds", ["", "a", "3-1", "1-999999999", "-1-2"])
def test_what_are_no_seeds_is_refused(seeds: str) -> None:
    with pytest.raises(ValueError, match="seed"):
        parse_seeds(seeds)
