"""No word leaves the machine: the hub is a server on loopback (tests/hub_server.py)."""

import socket
import urllib.error
from email.message import Message
from email.utils import formatdate

import pytest
from hub_server import COMMIT, at_home

from weights import hub
from weights.hub import HUBS, Repository, ask, is_address, listing_of, with_sum

FILES = {"config.json": b"{}", "model.safetensors": b"weights" * 1000}


@pytest.fixture
def server(monkeypatch, tmp_path):
    with at_home(monkeypatch, tmp_path, FILES, large=["model.safetensors"]) as server:
        yield server


def test_worked_example_of_addresses():
    assert Repository.of("hf:ORG/NAME") == Repository("hf", "ORG/NAME", "main")
    assert Repository.of("ms:01-ai/Yi-1.5@v1.0") == Repository("ms", "01-ai/Yi-1.5", "v1.0")
    assert is_address("hf:x") and not is_address("smollm2-135m-instruct") and not is_address("C:/models/hf")
    pull = Repository.of("hf:ORG/NAME@refs/pr/1")
    assert pull.url(pull.hub.listing).endswith("/api/models/ORG/NAME/revision/refs%2Fpr%2F1")


@pytest.mark.parametrize("address", ["hf:", "hf:gpt2", "hf:a/b/c", "hf:../b", "hf:a/..", "hf:a/b@", "ms:a/b c",
                                     "hf:a/b.", "hf:a/b@x\ny"])
def test_refusal_of_what_is_no_address(address):
    with pytest.raises(ValueError, match="is no address of a model; it is written"):
        Repository.of(address)


def test_worked_example_of_what_hugging_face_says(server):
    repository = Repository.of("hf:ORG/NAME")
    listing = listing_of(repository)
    assert (listing.commit, listing.licence) == (COMMIT, "apache-2.0")
    small, large = (with_sum(repository, COMMIT, file) for file in listing.files)
    assert (small.size, small.sum) == (2, "9e26dfeeb6e641a33dae4961196235bdb965b21b")      # git hash-object of «{}»
    assert (large.size, len(large.sum)) == (7000, 64) and server.fetched("cdn") == []


def test_worked_example_of_what_modelscope_says(server):
    listing = listing_of(Repository.of("ms:ORG/NAME"))
    assert (listing.commit, listing.licence) == (COMMIT, "Apache License 2.0")
    assert [(file.name, file.size, len(file.sum)) for file in listing.files] == \
        [("config.json", 2, 64), ("model.safetensors", 7000, 64)]


@pytest.mark.parametrize("licence, shown", [
    (None, "not named"), (["mit", "apache-2.0"], "mit, apache-2.0"), ("other", "llama3.2 LICENSE.txt")])
def test_worked_example_of_licences(server, licence, shown):
    server.listing = {"cardData": licence and {"license": licence, "license_name": "llama3.2", "license_link":
                                               "LICENSE.txt"}}
    assert listing_of(Repository.of("hf:ORG/NAME")).licence == shown


def test_property_the_token_stays_with_the_hub(server, monkeypatch):
    server.token = "hf_secret"
    monkeypatch.setenv("HF_TOKEN", "hf_secret\n")
    repository = Repository.of("hf:old/NAME")                       # whose redirect stays within the hub
    with ask(repository, repository.file_url(COMMIT, "model.safetensors")) as response:
        assert response.read() == FILES["model.safetensors"]
    sent = {(kind, headers.get("Authorization")) for kind, _, _, headers in server.asked}
    assert sent == {("hub", "Bearer hf_secret"), ("cdn", None)} and len(server.asked) == 3


def test_property_a_token_is_not_sent_where_somebody_could_read_along(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    for address, sent in (("https://a.example", True), ("http://localhost:1", True), ("http://a.example", False)):
        monkeypatch.setenv("HF_ENDPOINT", address)
        assert bool(Repository.of("hf:a/b").credentials()) == sent


def test_worked_example_of_tokens_in_files(server, monkeypatch, tmp_path):
    (tmp_path / "token").write_text("from_file\n", encoding="utf-8")
    assert Repository.of("hf:a/b").credentials() == {"Authorization": "Bearer from_file"}
    monkeypatch.setenv("MODELSCOPE_API_TOKEN", "from_environment")
    assert Repository.of("ms:a/b").credentials() == {"Authorization": "Bearer from_environment",
                                                     "Cookie": "m_session_id=from_environment"}
    (tmp_path / "token").write_text("two\r\nlines", encoding="utf-8")
    with pytest.raises(ValueError, match="the token in .*token holds characters that no token has"):
        Repository.of("hf:a/b").credentials()


@pytest.mark.parametrize("headers, seconds", [({}, [1, 2]), ({"Retry-After": "7"}, [7, 7]),
                                              ({"RateLimit": '"api";r=0;t=55'}, [55, 55])])
def test_worked_example_a_busy_hub_is_asked_again(server, headers, seconds):
    server.busy, server.busy_headers = [429, 503], headers
    assert listing_of(Repository.of("hf:ORG/NAME")).commit == COMMIT
    assert server.waited == seconds


def test_worked_example_of_a_date_to_wait_for(monkeypatch):
    monkeypatch.setattr(hub.time, "time", lambda: 1_700_000_000)
    headers = Message()
    headers["Retry-After"] = formatdate(1_700_000_030, usegmt=True)
    assert hub._asked_to_wait(headers, 1) == 30


@pytest.mark.parametrize("busy, headers, tries", [([503] * 9, {}, 5), ([429], {"Retry-After": "86400"}, 1)])
def test_refusal_of_a_hub_that_stays_busy(server, busy, headers, tries):
    server.busy, server.busy_headers = list(busy), headers
    with pytest.raises(RuntimeError, match=r"127.0.0.1:\d+ answers (429|503) .*; look at the network, or name a "):
        listing_of(Repository.of("hf:ORG/NAME"))
    assert len(server.asked) == tries


def test_refusal_without_a_network(server, monkeypatch):
    with socket.socket() as nobody:                                 # a port on which nobody listens
        nobody.bind(("127.0.0.1", 0))
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{nobody.getsockname()[1]}")
        with pytest.raises(RuntimeError, match=r"127.0.0.1:\d+ cannot be reached \(.*\); look at the network, or name"):
            listing_of(Repository.of("hf:ORG/NAME"))
    assert server.waited == [1, 2, 4, 8]


@pytest.mark.parametrize("asked, gated, given, words", [
    ("hf:ORG/NAME", False, "",
     r"is private, or there is no such model: look at .*, put a token of your account into HF_TOKEN \(or .*token\)"),
    ("hf:ORG/NAME", False, "other", "the hub does not accept the token in HF_TOKEN"),
    ("hf:ORG/NAME", True, "",
     r"\(401\); accept its licence at https://huggingface.co/ORG/NAME and put a token of your account into HF_TOKEN"),
    ("hf:ORG/NAME", True, "right",
     r"\(403\); accept its licence at https://huggingface.co/ORG/NAME with the account whose token stands in HF_TOKEN"),
    ("hf:ORG/NAME@v9", False, "right", "ORG/NAME has no revision v9; see https://huggingface.co/ORG/NAME"),
    ("hf:ORG/other", False, "right", "there is no model ORG/other at http://127.0.0.1"),
    ("ms:ORG/NAME@v9", False, "right",
     r"ORG/NAME has no revision v9 \(no files\); see https://www.modelscope.cn/models/ORG/NAME"),
], ids=["401", "401 token", "401 gated", "403 gated", "404 revision", "404", "ModelScope"])  # fmt: skip
def test_refusal_says_what_to_do(server, monkeypatch, asked, gated, given, words):
    server.token, server.gated = "right", gated
    for variable in ("HF_TOKEN", "MODELSCOPE_API_TOKEN"):
        monkeypatch.setenv(variable, given)
    repository = Repository.of(asked)
    with pytest.raises(ValueError, match=words):
        with_sum(repository, COMMIT, listing_of(repository).files[0])


@pytest.mark.parametrize("listing", [b"<html>", b"[" * 100_000, b"{}", b'{"sha": 1, "siblings": [1]}'])
def test_refusal_of_what_is_no_hub(server, monkeypatch, listing):
    server.files["config.json"] = listing
    url = f"{server.url()}/ORG/NAME/resolve/{COMMIT}/config.json"
    monkeypatch.setattr(Repository, "url", lambda self, *_, **__: url)
    with pytest.raises(ValueError, match="answers something else than a listing of files; is that the address of a"):
        listing_of(Repository.of("hf:ORG/NAME"))


@pytest.mark.parametrize("location", ["ftp://127.0.0.1/x", "file:///etc/passwd", "http://[bad"])
def test_refusal_of_redirects_that_leave_https(location):
    with pytest.raises(ValueError, match="which is not HTTPS; nothing was fetched from there"):
        hub._target("http://127.0.0.1/x", location)
    with pytest.raises(ValueError, match="which is not HTTPS"):
        hub._target("https://huggingface.co/x", "http://huggingface.co/y")


def test_refusal_of_a_mirror_without_sums(server, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", server.url("cdn"))            # which has an ETag of its own
    monkeypatch.setattr(Repository, "url", lambda self, *_, file="", **__: f"{server.url('cdn')}/{file}")
    with pytest.raises(ValueError, match="no size and sum of model.safetensors .*of-the-cdn.*leave out HF_ENDPOINT"):
        with_sum(Repository.of("hf:ORG/NAME"), COMMIT, hub.File("model.safetensors", -1, ""))


def test_refusal_of_an_endpoint_that_is_no_address(monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "ftp://mirror")
    with pytest.raises(ValueError, match="HF_ENDPOINT is 'ftp://mirror', which is no address"):
        assert Repository.of("hf:a/b").endpoint
    monkeypatch.setenv("HF_ENDPOINT", "mirror.example/")
    assert Repository.of("hf:a/b").endpoint == "https://mirror.example"


def test_property_every_hub_has_an_address_over_https():
    assert all(each.address.startswith("https://") for each in HUBS.values())


def test_property_an_error_without_a_body_is_no_crash():
    error = urllib.error.HTTPError("http://x", 418, "teapot", Message(), None)
    assert "answers 418 (teapot)" in str(hub._refusal(Repository.of("hf:a/b"), error))
