"""Errors in the words of the contract that was spoken."""

from __future__ import annotations

from text2image.core.errors import FieldViolation, InvalidRequest

ERROR = InvalidRequest(
    FieldViolation("width", "is 100 pixels; it must be a multiple of 8"),
    FieldViolation("steps", "is 0; it must be between 1 and 150"),
)


def test_a_field_is_called_what_the_contract_calls_it() -> None:
    assert ERROR.renamed({"steps": "num_steps"}).message == (
        "width: is 100 pixels; it must be a multiple of 8; "
        "num_steps: is 0; it must be between 1 and 150"
    )


def test_a_name_for_several_fields_is_told_with_the_one_that_is_meant() -> None:
    assert ERROR.renamed({"width": "size", "height": "size"}).violations == (
        FieldViolation("size", "width is 100 pixels; it must be a multiple of 8"),
        FieldViolation("steps", "is 0; it must be between 1 and 150"),
    )
