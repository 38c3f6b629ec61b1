"""Reading a catalog: every fault is told with its file, line and field, before anything is written."""

from pathlib import Path

import pytest

from cli.catalog_files import MAX_FILE, Catalog, load_catalog
from domain.vocabulary import Channel

GOOD = 'name: greeting\non: "shop.hello"\nchannels:\n  sms: {text: hi}\n'


def load(folder: Path, text: str, name: str = "a.yaml") -> Catalog:
    (folder / name).write_text(text)
    return load_catalog([folder])


def told(catalog: Catalog, folder: Path) -> str:
    return "\n".join(str(fault).replace(f"{folder}/", "") for fault in catalog.faults)


def bomb() -> str:
    aliases = (f"{chr(98 + i)}: &{chr(98 + i)} [{','.join(['*' + chr(97 + i)] * 10)}]\n" for i in range(8))
    return "a: &a [x,x,x,x,x,x,x,x,x,x]\n" + "".join(aliases)


def on_sms(text: str) -> str:
    return f"name: a\non: x\nchannels:\n  sms:\n    text: {text}\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("name: a\non: [unclosed\n", "a.yaml:3: is not usable YAML", id="syntax"),
        pytest.param("name: a\nname: b\n", "a.yaml:2: is not usable YAML: 'name' stands here twice", id="key twice"),
        pytest.param("name: a\n1: x\n", "a.yaml:2: is not usable YAML: a key should be a text", id="key no text"),
        pytest.param("x: !!python/object/apply:os.system [id]\n", "a.yaml:1: is not usable YAML", id="python tag"),
        pytest.param("name: a\n\x01: b\n", "a.yaml: is not usable YAML", id="control character"),
        pytest.param("a: " + "[" * 3000 + "]" * 3000, "a.yaml: is nested too deeply", id="deep"),
        pytest.param(bomb(), "a.yaml: stands for more than 100000 values", id="alias bomb"),
        pytest.param("&a\nname: a\nx: *a\n", "a.yaml: stands for more than", id="recursive alias"),
        pytest.param("", "a.yaml: holds no definition", id="empty"),
        pytest.param("- a\n", "a.yaml:1: should be a mapping", id="no mapping"),
        pytest.param("on: x\nchannels: {sms: {text: hi}}\n", "a.yaml:1: name: Field required", id="no name"),
        pytest.param(GOOD + "colour: red\n", "a.yaml:5: colour: is not a field", id="unknown field"),
        pytest.param(GOOD.replace("shop.hello", "shop..x"), "a.yaml:2: on: 'shop..x' is not a topic", id="pattern"),
        pytest.param(GOOD + "expires_after: soon\n", "a.yaml:5: expires_after: should be a duration", id="duration"),
        pytest.param(
            "name: a\non: x\nchannels:\n  fax: {text: hi}\n",
            "a.yaml:4: channels.fax: is not one of 'email', 'sms', 'push', 'chat', 'webhook' or 'inbox'",
            id="channel",
        ),
        pytest.param(GOOD.replace("greeting", "A b"), "a.yaml:1: name: should be at most 100 of a-z", id="name"),
        pytest.param(GOOD + "required: a\n", "a.yaml:5: required: should be a list", id="no list"),
        pytest.param("name: a\non: x\nchannels: [sms]\n", "a.yaml:3: channels: ", id="channels no mapping"),
        pytest.param(on_sms("5"), "a.yaml:5: channels.sms.text: ", id="text is a number"),
        pytest.param(on_sms('"{{ a"'), "a.yaml:5: channels.sms.text: line 1: ", id="template syntax"),
        pytest.param(on_sms('"{{ a | shout }}"'), "channels.sms.text: line 1: there is no filter", id="filter"),
        pytest.param(GOOD + "schema: {type: objekt}\n", "a.yaml:5: schema.type: ", id="schema"),
        pytest.param(GOOD + "schema: {const: .nan}\n", "a.yaml: has a number", id="not a JSON number"),
        pytest.param(GOOD + "required: [a]\nschema: {}\n", "has both required and schema", id="required and schema"),
        pytest.param(GOOD + "---\n" + GOOD, "a.yaml:6: name: greeting is defined in a.yaml:1 already", id="twice"),
        pytest.param(on_sms("{file: nope.j2}"), "a.yaml:5: channels.sms.text: file nope.j2: there is no", id="no file"),
        pytest.param(on_sms("{file: .}"), "file .: is not a file", id="folder for a file"),
        pytest.param(on_sms("{file: /etc/passwd}"), "file /etc/passwd: lies outside", id="absolute file"),
        pytest.param(on_sms("{file: ../secret}"), "file ../secret: lies outside", id="file above"),
        pytest.param(on_sms("{file: links/away}"), "file links/away: lies outside", id="link that leads out"),
        pytest.param(on_sms("{file: big.j2}"), "file big.j2: is too large", id="large file"),
        pytest.param(on_sms("{file: latin.j2}"), "file latin.j2: is not UTF-8: byte 1", id="not UTF-8"),
        pytest.param(on_sms("{path: x}"), "channels.sms.text: should be a text, or {file: name}", id="no file field"),
    ],
)
def test_what_is_wrong_is_told_with_its_place(tmp_path: Path, text: str, message: str) -> None:
    catalog = tmp_path / "catalog"
    (catalog / "links").mkdir(parents=True)
    (tmp_path / "secret").write_text("outside")
    (catalog / "links" / "away").symlink_to(tmp_path / "secret")
    (catalog / "big.j2").write_text("x" * (MAX_FILE + 1))
    (catalog / "latin.j2").write_bytes("hä".encode("latin-1"))
    found = load(catalog, text)
    assert message in told(found, catalog)


def test_an_argument_of_a_filter_that_can_never_be_right_is_told_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "price.j2").write_text("\n{{ price | money('EUROS') }}")
    found = load(tmp_path, on_sms("\"{% if big %}\\n{{ at | date('HH:mm') }}{% endif %}{% include 'price.j2' %}\""))
    assert told(found, tmp_path) == (
        "a.yaml:5: channels.sms.text: line 2: the filter date takes full, long, medium, short or a pattern of CLDR "
        "such as 'd. MMMM y'"
    )
    found = load(tmp_path, on_sms("\"{% include 'price.j2' %}\""))
    assert told(found, tmp_path) == (
        "a.yaml:5: channels.sms.text: price.j2 line 2: the filter money takes a currency of three capital letters, "
        "such as EUR"
    )


def test_every_fault_is_told_at_once(tmp_path: Path) -> None:
    (tmp_path / "b.yaml").write_text("name: [")
    found = load(tmp_path, "name: a\non: x\nchannels:\n  email: {text: hi}\n  sms: {}\n")
    assert told(found, tmp_path).splitlines() == [
        "a.yaml:4: channels.email.subject: Field required",
        "a.yaml:5: channels.sms.text: Field required",
        "b.yaml:1: is not usable YAML: expected the node content, but found '<stream end>'",
    ]


def test_a_fault_hides_no_other(tmp_path: Path) -> None:
    found = load(
        tmp_path,
        "name: A\non: x..y\nschema: {type: objekt}\nchannels:\n  email: {text: '{{ a'}\n"
        "  sms: {text: '{{ b'}\n  push: {text: {file: gone}}\n  fax: 5\n",
    )
    assert sorted(line.split(" ")[0] + line.split(" ")[1] for line in told(found, tmp_path).splitlines()) == [
        "a.yaml:1:name:",
        "a.yaml:2:on:",
        "a.yaml:3:schema.type:",
        "a.yaml:5:channels.email.subject:",
        "a.yaml:6:channels.sms.text:",
        "a.yaml:7:channels.push.text:",
        "a.yaml:8:channels.fax:",
    ]


def test_definitions_are_read_from_folders_several_documents_and_files_beside_them(tmp_path: Path) -> None:
    (tmp_path / "deeper").mkdir()
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden" / "copy.yaml").write_text(GOOD)  # as Kubernetes mounts a ConfigMap
    (tmp_path / "shared.j2").write_text("Hällo {{ name }}")
    (tmp_path / "deeper" / "b.yml").write_text(
        "name: b\non: x\nrequired: [name]\nchannels: {sms: {text: {file: ../shared.j2}}}\n"
    )
    found = load(tmp_path, GOOD + "---\n" + GOOD.replace("greeting", "other"))
    assert not found.faults
    assert sorted(found.definitions) == ["b", "greeting", "other"]
    assert found.definitions["b"].channels[Channel.SMS] == {"text": "Hällo {{ name }}"}
    assert found.places["other"] == f"{tmp_path}/a.yaml:6"


def test_a_file_given_twice_is_read_once(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(GOOD)
    assert not load_catalog([file, tmp_path]).faults


def test_a_file_alone_reads_only_from_its_own_folder(tmp_path: Path) -> None:
    (tmp_path / "deeper").mkdir()
    (tmp_path / "shared.j2").write_text("hi")
    file = tmp_path / "deeper" / "a.yaml"
    file.write_text(on_sms("{file: ../shared.j2}"))
    assert "lies outside" in told(load_catalog([file]), tmp_path)
    assert not load_catalog([tmp_path]).faults


@pytest.mark.parametrize("name", ["nothing", "nothing.yaml"])
def test_a_path_that_is_not_there_is_a_fault(tmp_path: Path, name: str) -> None:
    assert told(load_catalog([tmp_path / name]), tmp_path) == f"{name}: there is no such file"


def test_an_empty_folder_is_a_fault_so_that_prune_does_not_empty_the_catalog(tmp_path: Path) -> None:
    assert "holds no *.yaml" in told(load_catalog([tmp_path]), tmp_path)


def test_yaml_words_stay_words(tmp_path: Path) -> None:
    found = load(tmp_path, GOOD + "schema: {required: [on, yes, no], properties: {no: {const: 2026-01-01}}}\n")
    schema = found.definitions["greeting"].data_schema
    assert schema == {"required": ["on", "yes", "no"], "properties": {"no": {"const": "2026-01-01"}}}


def test_merge_keys_and_anchors_are_followed(tmp_path: Path) -> None:
    text = "name: a\non: x\nchannels:\n  sms: &short {text: hi}\n  chat: {<<: *short, title: Hello}\n"
    assert load(tmp_path, text).definitions["a"].channels[Channel.CHAT] == {"text": "hi", "title": "Hello"}


@pytest.mark.parametrize(
    ("more", "doubted"),
    [
        ("", ["carrier", "order_id"]),
        ("required: [order_id]\n", ["carrier"]),
        ("schema: {required: [carrier, order_id]}\n", []),
    ],
)
def test_a_name_that_no_event_must_bring_is_doubted(tmp_path: Path, more: str, doubted: list[str]) -> None:
    text = "{{ order_id }} {{ carrier }} {{ note | default('') }} {{ recipient.name }}"
    found = load(tmp_path, f'name: a\non: x\nchannels:\n  sms:\n    text: "{text}"\n{more}')
    assert not found.faults
    assert [warning.text.split(",")[0] for warning in found.warnings] == [f"uses {name}" for name in doubted]


def test_a_name_that_one_locale_alone_needs_is_told_of_that_one(tmp_path: Path) -> None:
    found = load(
        tmp_path,
        "name: a\non: x.y\nrequired: [c]\nchannels:\n  sms:\n    text: '{{ a }} {{ c }}'\n    locales:\n"
        "      de: {text: '{{ a }} {{ b }} {{ c }}'}\n",
    )
    assert [str(warning).replace(f"{tmp_path}/", "") for warning in found.warnings] == [
        "a.yaml:5: channels.sms: uses a, which is not required: an event without it is not delivered (template_error)",
        (
            "a.yaml:8: channels.sms.locales.de: uses b, which is not required: "
            "an event without it is not delivered to recipients of this locale (template_error)"
        ),
    ]
