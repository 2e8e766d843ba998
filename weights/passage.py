"""What both sides of a conversion read: a built-in text in several languages, as at least 256 tokens.

Try: let TOKENS be 24, so that a conversion is certified on less than a paragraph; tests/test_passage.py
(test_property_the_text_has_enough_tokens_in_any_vocabulary) fails.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from llama.config import LlamaConfig
from tokenizer.base import Tokenizer

TOKENS = 256                    # positions that are compared

TEXT = """\
The ferry left at dawn, and nobody on the pier waved. Mara counted the gulls: seven, eight, nine, then none.
清晨的渡船离开了码头，没有人挥手。玛拉数着海鸥：七只、八只、九只，然后一只也没有了。
Le vieux pêcheur répara son filet près de l'église ; « demain », dit-il, « la mer sera calme ».
Der Leuchtturm blinkt alle zwölf Sekunden, auch wenn niemand hinübersieht.
على الشاطئ بيت صغير، وفيه ساعة لا تتوقف.
На столе лежали карта, яблоко и письмо без адреса.
def tide(hour: int) -> float:
    return 2.5 * math.sin(hour / 12.42 * 2 * math.pi)  # metres
港の朝は静かで、パンの匂いがした。 등대지기는 커피를 끓였다.
The answer was 3,141.59 € (≈ 22 × 142.8), or so the clerk said 🙂. "Why?" — "Because it rained."
La marea sube dos veces al día; ¿quién la llama? O vento sabe, mas não conta.
At noon the fog lifted. The children ran down to the water, and the smallest one found a green bottle with a letter in
it. "Read it to us," they said, and she read: I am well, the island is small, there are goats, please send a book.
中午雾散了。孩子们跑到水边，最小的一个找到一只绿色的瓶子，里面有一封信。她念道：我很好，岛很小，有山羊，请寄一本书来。
SELECT name, depth FROM wells WHERE depth > 40 ORDER BY depth DESC LIMIT 5;
Το φως της λάμπας έπεφτε στο πάτωμα. सुबह की चाय ठंडी हो गई। Mặt trời lên chậm sau dãy núi.
They wrote back that evening, all of them on one page, and sent the longest book they had, and a packet of seeds.
"""


@dataclass
class Passage:
    """What both sides read: `rows` of at most the model's context, and how they came about."""

    rows: list[Tensor]
    how: str


def passage(tokenizer: Tokenizer | None, config: LlamaConfig) -> Passage:
    """The first 256 tokens of the text; where a vocabulary makes fewer of it, ids derived from their position follow.

    Scattered ids say nothing about language, but logits of the two sides can be compared on them as well.
    """
    V = config.vocab_size
    ids = [id for id in tokenizer.encode(TEXT, bos=tokenizer.adds_bos) if id < V][:TOKENS] if tokenizer else []
    derived = [i * 2_654_435_761 % 2**32 * V >> 32 for i in range(1, TOKENS + 1 - len(ids))]
    how = [f"{len(ids)} tokens of the built-in text"] * bool(ids)
    how += [f"{len(derived)} ids derived from their position"] * bool(derived)
    rows = torch.tensor(ids + derived).split(min(TOKENS, config.max_position_embeddings))
    return Passage([row for row in rows if len(row) > 1], " and ".join(how))
