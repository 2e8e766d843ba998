"""Models out of the two public hubs, over plain HTTPS: `hf:ORG/NAME[@REVISION]` and `ms:ORG/NAME[@REVISION]`.

    hf:Qwen/Qwen2.5-0.5B-Instruct               Hugging Face's hub, or a mirror of it that HF_ENDPOINT names
    ms:Qwen/Qwen2.5-0.5B-Instruct@v1.0          ModelScope's

A token is sent to the hub alone, and only over HTTPS: a redirect to where the files lie goes without it.

Source: huggingface.co/docs/hub/api, /docs/huggingface_hub (download, environment variables) and /docs/hub/rate-limits;
the clients that the hubs publish, huggingface_hub 2.4 and modelscope_hub 0.3. Tested against a server of our own.

Try: let `_open` send the token with every redirect; tests/test_hub.py (test_property_the_token_stays_with_the_hub)
fails.
"""

import contextlib
import email.utils
import http.client
import json
import operator
import os
import re
import string
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urljoin, urlsplit

from llama.runtime.terminal import say

# ---- the hubs --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Hub:
    address: str                        # where it is published
    elsewhere: tuple[str, ...]          # environment variables that name a mirror; the first that is set counts
    branch: str                         # the revision if none is given
    listing: str                        # the files of a revision
    about: str                          # what else is known, such as the licence; "" where the listing says it
    file: str
    page: str                           # for people: licence, and access
    token: str                          # environment variable
    login: tuple[str, str]              # the folder in which a login leaves it: environment variable, or else this
    headers: tuple[tuple[str, str], ...]    # that carry the token


HUBS = {
    "hf": Hub("https://huggingface.co", ("HF_ENDPOINT",), "main", "/api/models/{name}/revision/{revision}", "",
              "/{name}/resolve/{revision}/{file}", "/{name}", "HF_TOKEN",
              ("HF_HOME", "{cache}/huggingface"), (("Authorization", "Bearer {}"),)),
    "ms": Hub("https://www.modelscope.cn", ("MODELSCOPE_ENDPOINT", "MODELSCOPE_DOMAIN"), "master",
              "/api/v1/models/{name}/repo/files?Revision={revision}&Recursive=true",
              "/api/v1/models/{name}?Revision={revision}",
              "/api/v1/models/{name}/repo?Revision={revision}&FilePath={file}", "/models/{name}",
              "MODELSCOPE_API_TOKEN", ("MODELSCOPE_HOME", "~/.modelscope"),
              (("Authorization", "Bearer {}"), ("Cookie", "m_session_id={}"))),
}  # fmt: skip

LISTING = 64 << 20                                                 # bytes of a listing at most
TIMEOUT = 60                                                       # s without a byte
WAITS = (1, 2, 4, 8)                                               # s, between tries without any progress
LONGEST_WAIT = 600                                                 # s that a busy hub may ask for
BUSY = (429, 500, 502, 503, 504)
REDIRECTS = (301, 302, 303, 307, 308)


@dataclass(frozen=True)
class File:
    name: str
    size: int                                                      # bytes
    sum: str                                                       # hex: sha256, or git's sha1 of a small file

    @property
    def part(self) -> str:
        """The name of what has come of it so far: another content has another."""
        return f"{self.name}.{self.sum}"


@dataclass(frozen=True)
class Listing:
    commit: str
    licence: str
    files: tuple[File, ...]                                        # of a hub that lists no sums: size -1, sum ""

    @property
    def size(self) -> int:
        return sum(file.size for file in self.files)


# ---- addresses -------------------------------------------------------------------------------------------------------


def is_address(name: str) -> bool:
    """Whether this names a model on a hub, rightly or not."""
    return name.partition(":")[0] in HUBS and ":" in name


@dataclass(frozen=True)
class Repository:
    """A model on a hub, at a revision: branch, tag or commit."""

    key: str                                                       # of HUBS
    name: str                                                      # ORG/NAME
    revision: str

    @classmethod
    def of(cls, address: str) -> "Repository":
        key, _, rest = address.partition(":")
        name, at, revision = rest.partition("@")
        parts = name.split("/")
        good = len(parts) == 2 and all(re.fullmatch(r"\w[\w.-]{0,95}", part, re.ASCII) and not part.endswith(".")
                                       for part in parts)
        if not good or at and not revision or not revision.isprintable():
            raise ValueError(f"{address} is no address of a model; it is written {key}:ORG/NAME, or {key}:ORG/NAME"
                             "@REVISION, as its page calls it")
        return cls(key, name, revision or HUBS[key].branch)

    @property
    def address(self) -> str:
        return f"{self.key}:{self.name}@{self.revision}"

    @property
    def hub(self) -> Hub:
        return HUBS[self.key]

    @property
    def endpoint(self) -> str:
        variable = next((each for each in self.hub.elsewhere if os.environ.get(each)), "")
        address = (os.environ[variable] if variable else self.hub.address).strip().rstrip("/")
        address = address if "://" in address else f"https://{address}"
        if not re.fullmatch(r"https?://[\w.-]+(:\d+)?(/[!-~]*)?", address, re.ASCII):
            raise ValueError(f"{variable} is {address!r}, which is no address; give one such as {self.hub.address}")
        return address

    @property
    def page(self) -> str:
        """For people. A mirror has none on which a licence could be accepted."""
        return self.hub.address + self.hub.page.format(name=self.name)

    def url(self, template: str, *, revision: str = "", file: str = "") -> str:
        return self.endpoint + template.format(name=self.name, revision=quote(revision or self.revision, safe=""),
                                               file=quote(file))

    def file_url(self, commit: str, file: str) -> str:
        """On Hugging Face's hub, of this very commit. ModelScope knows branches and tags; there, sums tell."""
        return self.url(self.hub.file, revision=commit if self.key == "hf" else "", file=file)

    @property
    def token(self) -> tuple[str, str]:
        """The token, "" if there is none, and where it stands."""
        variable, folder = self.hub.login
        cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
        path = Path(os.environ.get(variable) or folder.format(cache=cache)).expanduser() / "token"
        place, token = self.hub.token, os.environ.get(self.hub.token, "").strip()
        if not token:
            place = str(path)
            with contextlib.suppress(OSError):
                token = path.read_text(encoding="utf-8", errors="replace").strip()
        if not re.fullmatch(r"[!-~]*", token):                     # it goes into a header
            raise ValueError(f"the token in {place} holds characters that no token has; copy it there again")
        return token, place

    def credentials(self) -> dict[str, str]:
        """The headers with the token; none where somebody could read along."""
        address = urlsplit(self.endpoint)
        private = address.scheme == "https" or address.hostname in ("localhost", "127.0.0.1", "::1")
        token = self.token[0]
        return {header: value.format(token) for header, value in self.hub.headers} if token and private else {}


# ---- requests --------------------------------------------------------------------------------------------------------


class Cut(Exception):
    """The connection was lost, or never made."""


class _AsTheyAre(urllib.request.HTTPRedirectHandler):
    """Redirects come back as errors: urllib would send the token with them to whoever is named."""

    def redirect_request(self, *_: Any) -> None:
        return None


def _open(url: str, credentials: dict[str, str], *, method: str = "GET", start: int = 0) -> Any:
    """The response, redirects followed, `credentials` sent only to where `url` leads.

    A redirect that tells size and sum is itself the answer to HEAD. Raises HTTPError, and Cut without any answer.
    """
    opener, home_of_token = urllib.request.build_opener(_AsTheyAre), urlsplit(url)[:2]
    for _ in range(10):
        headers = {"User-Agent": "llama-by-hand", "Accept-Encoding": "identity"}
        headers |= {"Range": f"bytes={start}-"} if start else {}
        headers |= credentials if urlsplit(url)[:2] == home_of_token else {}
        try:
            return opener.open(urllib.request.Request(url, headers=headers, method=method), timeout=TIMEOUT)
        except urllib.error.HTTPError as answer:
            if answer.code not in REDIRECTS or "Location" not in answer.headers:
                raise
            if method == "HEAD" and "X-Linked-Etag" in answer.headers:
                return answer
            answer.close()
            target = _target(url, answer.headers["Location"])
        except urllib.error.URLError as error:
            raise Cut(error.reason) from None
        except (OSError, http.client.HTTPException) as error:
            raise Cut(error) from None
        url = target
    raise ValueError(f"{url:.200} leads from place to place without an end; try again later")


def _target(url: str, location: str) -> str:
    """Where a redirect leads: to HTTPS, or to HTTP from where it was HTTP before."""
    with contextlib.suppress(ValueError):
        target = quote(urljoin(url, location), safe=string.punctuation, encoding="iso-8859-1")
        if urlsplit(target).scheme in ("https", urlsplit(url).scheme):
            return target
    raise ValueError(f"{url:.200} leads to {location:.200}, which is not HTTPS; nothing was fetched from there")


def ask(repository: Repository, url: str, *, method: str = "GET", start: int = 0) -> Any:
    """A response that is no failure: after a cut, and where the hub is busy, asked again.

    Raises ValueError, saying what to do, where the hub refuses; RuntimeError where it cannot be reached.
    """
    host = urlsplit(repository.endpoint).netloc
    for wait in (*WAITS, None):
        try:
            return _open(url, repository.credentials(), method=method, start=start)
        except urllib.error.HTTPError as answer:
            answer.close()
            if answer.code not in BUSY:
                raise _refusal(repository, answer) from None
            wait, reason = wait and _asked_to_wait(answer.headers, wait), f"answers {answer.code} ({answer.reason})"
        except Cut as error:
            reason = f"cannot be reached ({error})"
        if wait is None or wait > LONGEST_WAIT:
            raise RuntimeError(f"{host} {reason}; look at the network, or name a mirror in "
                               f"{repository.hub.elsewhere[0]}, and give the same command again: what has come is kept")
        say(f"{host} {reason}; asking again in {wait:.0f} s")
        time.sleep(wait)
    raise AssertionError("the last wait is None")


def _asked_to_wait(headers: Any, otherwise: float) -> float:
    """Seconds, of Retry-After (a number or a date) or of RateLimit (`"api";r=0;t=55`)."""
    after = headers.get("Retry-After", "").strip()
    if after.isdigit():
        return int(after)
    with contextlib.suppress(ValueError, TypeError):
        return max(0.0, email.utils.parsedate_to_datetime(after).timestamp() - time.time())
    left = re.search(r";\s*t=(\d+)", headers.get("RateLimit", ""))
    return int(left[1]) if left else otherwise


def _refusal(repository: Repository, answer: urllib.error.HTTPError) -> ValueError:
    name, hub, why = repository.name, repository.hub, answer.headers.get("X-Error-Code", "")
    token, place = repository.token
    if answer.code == 403 or why == "GatedRepo":
        then = f"with the account whose token stands in {place}" if token else \
            f"and put a token of your account into {hub.token} (or {place})"
        return ValueError(f"{name} is not open to everyone ({answer.code}); accept its licence at {repository.page} "
                          f"{then}")
    if answer.code == 401:
        return ValueError(f"{name} is private, or there is no such model: the hub does not accept the token in {place}"
                          if token else
                          f"{name} is private, or there is no such model: look at the name, and if it is right, put a "
                          f"token of your account into {hub.token} (or {place})")
    if answer.code == 404 and why == "RevisionNotFound":
        return ValueError(f"{name} has no revision {repository.revision}; see {repository.page}")
    if answer.code == 404:
        return ValueError(f"there is no model {name} at {repository.endpoint}; look at how its page writes the name")
    return ValueError(f"{repository.endpoint} answers {answer.code} ({answer.reason}) when asked for {name}")


# ---- what there is ---------------------------------------------------------------------------------------------------


def _json(repository: Repository, url: str) -> dict[str, Any]:
    with ask(repository, url) as response:
        content = response.read(LISTING + 1)
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict) or len(content) > LISTING:
        raise ValueError(f"{url} answers something else than a listing of files; is that the address of a hub?")
    return found


def listing_of(repository: Repository) -> Listing:
    """The commit, the licence and all files of the revision, whatever they are."""
    found = _json(repository, repository.url(repository.hub.listing))
    try:
        return _of_hugging_face(found) if repository.key == "hf" else _of_modelscope(repository, found)
    except (KeyError, TypeError, AttributeError):
        raise ValueError(f"{repository.url(repository.hub.listing)} answers something else than a listing of files; is "
                         "that the address of a hub?") from None


def _of_hugging_face(found: dict[str, Any]) -> Listing:
    """{"sha": …, "siblings": [{"rfilename": …}, …], "cardData": {"license": …}}; sums come with each file's headers."""
    card = found.get("cardData") or {}
    licence = card.get("license") or "not named"
    licence = ", ".join(licence) if isinstance(licence, list) else str(licence)
    if licence == "other":
        licence = " ".join(str(card[key]) for key in ("license_name", "license_link") if key in card) or licence
    names = [str(each["rfilename"]) for each in found["siblings"]]
    return Listing(_hex(found["sha"]), licence, tuple(File(name, -1, "") for name in names))


def _of_modelscope(repository: Repository, found: dict[str, Any]) -> Listing:
    """{"Code": 200, "Data": {"Files": [{"Path", "Type", "Size", "Sha256", "Revision"}, …], "LatestCommitter": …}}

    An unknown revision is answered with 200 and no files. The commit is known by its first digits, and whole by a file
    that it changed.
    """
    data = found.get("Data") or {}
    if found.get("Code", 200) != 200 or not data.get("Files"):
        raise ValueError(f"{repository.name} has no revision {repository.revision} "
                         f"({found.get('Message') or 'no files'}); see {repository.page}")
    files = [each for each in data["Files"] if each.get("Type") != "tree"]
    last = data.get("LatestCommitter") or {}
    short = str(last.get("Id") or last.get("Revision") or last.get("ShortId") or "")
    commits = (str(each.get("Revision")) for each in files)
    commit = next((each for each in commits if short and each.startswith(short)), short)
    about = _json(repository, repository.url(repository.hub.about)).get("Data") or {}
    return Listing(commit, str(about.get("License") or "not named"),
                   tuple(File(str(each["Path"]), operator.index(each["Size"]), _hex(each["Sha256"])) for each in files))


def _hex(digits: Any) -> str:
    """The digits of a sum or commit, which become part of a path or an address: nothing but that."""
    digits = str(digits).removeprefix("W/").strip('"').lower()
    return digits if re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", digits) else ""


def with_sum(repository: Repository, commit: str, file: File) -> File:
    """Size and sum as the headers of the file tell them: X-Linked-… of a large one, which lies elsewhere."""
    if file.sum:
        return file
    with ask(repository, repository.file_url(commit, file.name), method="HEAD") as answer:
        size = answer.headers.get("X-Linked-Size") or answer.headers.get("Content-Length") or ""
        etag = answer.headers.get("X-Linked-Etag") or answer.headers.get("ETag") or ""
    if not size.isdigit() or not _hex(etag):
        raise ValueError(f"{repository.endpoint} tells no size and sum of {file.name} (size {size!r:.20}, ETag "
                         f"{etag!r:.80}), so nothing would prove it whole; leave out {repository.hub.elsewhere[0]}, "
                         "or name another mirror there")
    return File(file.name, int(size), _hex(etag))
