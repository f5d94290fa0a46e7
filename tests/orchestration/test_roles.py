"""Roles: the models of R-000-45, how they are named (R-000-44), and the operator's own over them."""

from __future__ import annotations

from pathlib import Path

import pytest

from hortator.errors import ConfigError
from hortator.orchestration.roles import Roles

MODELS = {
    "hortator/coding-expert": "General software development",
    "hortator/security-reviewer": "Code security analysis",
    "hortator/performance-optimizer": "Performance tuning specialist",
    "hortator/legal-reviewer": "Contract and document review",
    "hortator/legal-researcher": "Case law and statute research",
    "hortator/legal-writer": "Legal document drafting",
    "hortator/researcher": "Academic and business research",
    "hortator/data-analyst": "Statistical analysis specialist",
    "hortator/market-researcher": "Market analysis and trends",
    "hortator/technical-writer": "Documentation and guides",
    "hortator/copywriter": "Marketing and promotional content",
    "hortator/editor": "Content review and improvement",
}
"""R-000-45, word for word."""
LONGEST = 2_800
"""Characters of a role's instructions: less than a fifth of the embedded model's context."""


def write(folder: Path, name: str, text: str) -> Path:
    """A role file of the operator's."""
    (folder / name).write_text(text)
    return folder


def own(**fields: str) -> str:
    """The text of a role file."""
    given = {"name": "welder", "domain": "metal", "description": "Joins things", "prompt": "Join things well."} | fields
    return "".join(f"{name}: {value}\n" for name, value in given.items())


def test_the_twelve_models_are_there_with_their_descriptions() -> None:
    """R-000-45."""
    roles = Roles()
    assert {model: role.description for model in MODELS if (role := roles.find(model))} == MODELS
    assert {role.model for name in roles.names() if (role := roles.find(name))} == {*MODELS, "hortator/generalist"}


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("hortator/coding-expert", "coding-expert"),
        ("coding-expert", "coding-expert"),
        ("hortator/coding-coding-expert", "coding-expert"),
        ("hortator/legal-reviewer", "legal-reviewer"),
        ("hortator/legal-legal-reviewer", "legal-reviewer"),
        ("hortator/research-data-analyst", "data-analyst"),
        ("hortator/content-editor", "editor"),
        ("hortator/default", "generalist"),
        ("default", "generalist"),
        ("hortator/generalist", "generalist"),
    ],
)
def test_a_role_is_found_by_each_spelling_of_its_model(spelling: str, name: str) -> None:
    """R-000-44: `hortator/{domain}-{role}`."""
    found = Roles().find(spelling)
    assert found is not None
    assert found.name == name


@pytest.mark.parametrize(
    "spelling", ["", "hortator/", "hortator/legal-editor", "openai/coding-expert", "Coding-Expert"]
)
def test_what_is_no_role_is_not_found(spelling: str) -> None:
    assert Roles().find(spelling) is None


def test_a_misspelt_role_is_recognised() -> None:
    assert Roles().similar("hortator/coding-xpert")[0] == "coding-expert"


def test_built_in_instructions_leave_room_in_the_smallest_model() -> None:
    roles = Roles()
    for name in roles.names():
        role = roles.find(name)
        assert role is not None
        text = role.instructions
        assert len(text) < LONGEST, name
        assert role.prompt.startswith("You are "), name
        assert len(role.rules) >= 3, name
        assert all(f"- {line}" in text for line in (*role.rules, *role.anti_patterns))


def test_a_role_of_the_operator_stands_beside_the_built_in_ones(tmp_path: Path) -> None:
    roles = Roles(write(tmp_path, "welder.yaml", own(tiers="[legionary]", temperature="0.2", capabilities="[shell]")))
    welder = roles.find("hortator/metal-welder")
    assert welder is roles.find("welder")
    assert welder is not None
    assert (welder.tiers, welder.temperature, welder.capabilities) == (("legionary",), 0.2, ("shell",))
    assert "coding-expert" in roles.names()


def test_a_role_of_the_operator_takes_the_place_of_a_built_in_one(tmp_path: Path) -> None:
    roles = Roles(write(tmp_path, "mine.yaml", own(name="editor", description="Our editor")))
    assert (editor := roles.find("hortator/editor")) is not None
    assert editor.description == "Our editor"
    assert len([name for name in roles.names() if name == "editor"]) == 1


def test_a_name_goes_before_another_roles_other_spelling(tmp_path: Path) -> None:
    write(tmp_path, "a.yaml", own(name="reviewer", domain="legal"))
    found = Roles(tmp_path).find("hortator/legal-reviewer")
    assert found is not None
    assert found.name == "legal-reviewer"


def test_agents_of_a_tier_get_the_roles_made_for_it_and_those_made_for_all(tmp_path: Path) -> None:
    roles = Roles(write(tmp_path, "welder.yaml", own(tiers="[legionary]")))
    assert "welder" in [role.name for role in roles.for_tier("legionary")]
    assert "welder" not in [role.name for role in roles.for_tier("tribune")]
    assert "generalist" in [role.name for role in roles.for_tier("tribune")]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (own(colour="red"), "welder.yaml:5: colour: unknown setting"),
        (own(name="Welder"), "welder.yaml:1: name: expected small letters"),
        (own(name="a--b"), "welder.yaml:1: name: expected small letters"),
        (own(name="x" * 64), "welder.yaml:1: name: expected text of 1 to 63 characters"),
        (own(name="pattern-mine"), "welder.yaml:1: name: names with `pattern-`"),
        (own(name="default"), "welder.yaml:1: name: `default` is the role `generalist`"),
        (own(domain="no domain"), "welder.yaml:2: domain: expected small letters"),
        (own(prompt="x" * 12_001), "welder.yaml:4: prompt: expected text of 1 to 12000 characters"),
        (own(rules="not a list"), "welder.yaml:5: rules: expected a list"),
        (own(rules="[" + ", ".join("x" for _ in range(21)) + "]"), "welder.yaml:5: rules: at most 20 of them"),
        (own(tiers="[emperor]"), "welder.yaml:5: tiers[0]: expected one of: tribune, centurion, legionary"),
        (own(capabilities="[root]"), "welder.yaml:5: capabilities[0]: expected one of"),
        (own(task_types='["a b"]'), "welder.yaml:5: task_types[0]: expected letters"),
        (own(temperature="3"), "welder.yaml:5: temperature: expected a number from 0 to 2"),
        (own(parameters="alchemy"), "welder.yaml:5: parameters: expected one of: coding, legal"),
        ("name: welder\n", "`prompt` is missing"),
        ("- a list\n", "expected settings"),
        ("name: [\n", "not valid YAML"),
    ],
)
def test_a_bad_role_file_is_refused_by_file_and_field(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        Roles(write(tmp_path, "welder.yaml", text))
    assert said in refused.value.message


def test_two_files_of_one_name_are_refused(tmp_path: Path) -> None:
    write(tmp_path, "a.yaml", own())
    write(tmp_path, "b.yaml", own())
    with pytest.raises(ConfigError, match=r"b\.yaml:1: name: `welder` is also in a\.yaml"):
        Roles(tmp_path)


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the roles cannot be read"):
        Roles(tmp_path / "nowhere")
