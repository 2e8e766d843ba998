"""What the judges are asked about: long texts for logits, prompts for greedy text, odd lines for tokenizers."""

from pathlib import Path

NEUTRAL = (Path(__file__).parents[2] / "examples" / "neutral.txt").read_text(encoding="utf-8")

CHINESE = (
    "长江是亚洲第一长河，发源于青藏高原，流经十一个省、自治区和直辖市，最后注入东海。江水在上游穿过深谷，水流湍急；"
    "到了中游，河道变宽，两岸是大片的稻田和湖泊。人们沿江修建了城市、港口和桥梁，也在支流上筑起水坝，用来发电和防洪。"
    "春天，渔民在清晨出船，傍晚归来；秋天，山上的树叶变红，江面上常有薄雾。许多诗人写过这条河，写它的宽阔，写它的离别，"
    "也写它日夜不停地向东流去。"
)

CODE = '''
class Stack:
    """Last in, first out."""

    def __init__(self, items=()):
        self._items = list(items)   # copied: the caller's list stays as it is

    def push(self, item):
        self._items.append(item)

    def pop(self):
        if not self._items:
            raise IndexError(f"pop from an empty stack ({len(self._items)=})")
        return self._items.pop()

for (int i = 0; i < n; ++i) { total += a[i] * b[i]; }\t// dot product\r\n
'''

LOGITS = {"English": NEUTRAL[:6000], "Chinese": CHINESE, "code": CODE}

PROMPTS = [
    "The capital of France is", "Once upon a time, in a small village,", "def fibonacci(n):", "1, 2, 3, 4,",
    "The three most important inventions of the nineteenth century were", "Dear Sir or Madam,", "北京是中国的",
    "Water boils at", "Q: What is photosynthesis?\nA:", "To bake bread, first",
    "Yesterday it rained all day, so we", "# Shopping list\n\n- ", "import torch\n\nclass", "In the year 1969,",
    "The difference between a frog and a toad is", "Il était une fois", "Dear diary, today I learned that",
    "The proof is by induction on n. For n = 1,", "<p>Hello, <b>", "人工智能是",
]

TOKENIZER = [
    "", " ", "  ", "\n", "\n\n\n", "\t \t", " \n ", "a", " a", "a ", "  a  b   c    ", "word\r\nword\r\r\n",
    "I'm you're we'll they'd he's I've can't O'CLOCK I'M YOU'RE", "don’t “quote” … — –",
    "3.14159 1,000,000 12345678 ½ ² Ⅷ ٣", "naïve café e\u0301 Å A\u030a ﬁ ß ẞ İ ı",
    "你好，世界！今天天气很好。", "繁體中文與简体中文，１２３４ＡＢＣ", "日本語のテキスト、カタカナ ｶﾀｶﾅ",
    "한국어 문장입니다", "Привет, мир!", "مرحبا بالعالم", "שלום עולם", "नमस्ते दुनिया", "สวัสดีชาวโลก",
    "😀 👩\u200d👩\u200d👧\u200d👦 👍🏽 🇨🇳🇫🇷 ❤️ ☕️", "1️⃣ 2️⃣", "𝒜𝓁𝑔𝑒𝒷𝓇𝒶 𠮷野家 𓀀", "\u202eright to left\u202c",
    "\u00a0non\u00a0breaking\u2003em\u3000wide\u200bzero\u2028line\u0085next", "\x00\x01\x1c\x1d\x1f\x7f control",
    "\ufeffBOM", "<|im_start|>user\nHi<|im_end|>", "<|endoftext|>", "http://example.org/a_b?c=d&e=%20#f",
    "x=y+z; a[i]->b::c != d && e || !f", "tab\tseparated\tvalues\n1\t2\t3",
    "___init__ snake_case camelCase SCREAMING_CASE kebab-case", "a" * 300, " " * 300, "ab" * 150, "=" * 80,
    NEUTRAL, CHINESE, CODE,
]
