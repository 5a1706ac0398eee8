"""Secrets are hidden wherever a setting, a URL or the environment names them, and nothing else is."""

from typing import Any

import pytest

from mpp.redaction import HIDDEN, names_secret, redact, redact_url

SESAME = "open-sesame-123"


def test_names_tell_of_secrets_by_whole_words() -> None:
    for name in ("HF_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "apiKey", "accessToken", "db.password", "key"):
        assert names_secret(name), name
    for name in ("log_every", "keys", "tokenizer", "monkey", "keyboard", "passwords_seen", "class_tokens", "steps"):
        assert not names_secret(name), name


def test_no_setting_of_ours_is_taken_for_a_secret() -> None:
    from mpp.config import dump, resolve
    from mpp.training.recipe import PretrainConfig

    plain = dump(resolve(PretrainConfig, {"shards": "a", "out": "b", "vit": {"pool": "token"}}))
    assert redact(plain) == plain


def test_a_tree_of_settings_keeps_its_shape() -> None:
    tree = {
        "tracker": {
            "api_key": SESAME,
            "project": "x",
            "token": None,
            "secrets": [1],
            "password": {"a": [SESAME, True]},
        },
        "shards": [f"https://me:{SESAME}@host/a.tar", {"shards": f"s3://b/?X-Amz-Signature={SESAME}"}],
        "key": 12345,
    }
    assert redact(tree) == {
        "tracker": {
            "api_key": HIDDEN,
            "project": "x",
            "token": None,
            "secrets": [1],
            "password": {"a": [HIDDEN, True]},
        },
        "shards": ["https://host/a.tar", {"shards": "s3://b/?X-Amz-Signature=..."}],
        "key": HIDDEN,
    }


@pytest.mark.parametrize(
    "text",
    [
        f"cannot read https://me:{SESAME}@host/x: gone",
        f"GET https://host/a.tar?X-Amz-Signature={SESAME}&v=1 (404)",
        f"api_key={SESAME} is wrong",
        f"{{'api_key': '{SESAME}', 'a': 1}}",
        f'{{"hf_token": "{SESAME} and more {SESAME}"}}',
        f"Authorization: Bearer {SESAME}",
        f"wandb.api_key: {SESAME}",
    ],
)
def test_texts_lose_their_secrets_once_and_for_all(text: str) -> None:
    shown = redact(text)
    assert SESAME not in shown
    assert redact(shown) == shown


@pytest.mark.parametrize(
    "text",
    [
        "train-000000.tar: key 000012: cannot be decoded",
        "the key out is given twice",
        "key: n0123 in shard 3",
        "vit.pool: was 'token', now 'mean'",
        "steps=3: known are s3://, gs://, https://, file://",
        "https://host:80/a b.tar",
    ],
)
def test_other_texts_stay_as_they_are(text: str) -> None:
    assert redact(text) == text


def test_what_the_environment_holds_is_hidden_in_any_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", SESAME)
    monkeypatch.setenv("SHORT_TOKEN", "the")
    monkeypatch.setenv("MPP_OTHER", "another-value")
    monkeypatch.setenv("PWD", "/the/folder")
    shown: Any = redact(["the other", f"a{SESAME}b another-value", "/the/folder"])
    assert shown == ["the other", f"a{HIDDEN}b another-value", "/the/folder"]


def test_a_url_that_cannot_be_read_shows_its_scheme_alone() -> None:
    assert redact_url(f"HTTPS://me:{SESAME}@[::1/a") == "https://..."
