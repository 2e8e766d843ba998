"""Texts as people type them in a hurry: wrong characters, homophones, missing characters. Spans move along.

    typos        two neighbours in each other's place, or a character of the same text in the place of another
    homophones   a character that is said alike, of the groups below: what an input method by pinyin gets wrong
    deletions    a character is missing

Of every text the same share of its Chinese characters is changed, drawn by a seed and the text itself, so that it is
perturbed alike in whichever order the texts come. A label stays, as a reader's judgement of the text would.

Try: let `_rebased` forget what was deleted before a span; tests/test_method_ablation.py
(test_property_spans_move_along_with_their_characters) fails.
"""

import random
import zlib
from collections.abc import Sequence
from itertools import accumulate

# Frequent characters that are said alike, the tone aside; written down for this file.
HOMOPHONES = """
的得地德 在再载 是事市式试世室视 时十石实识 他她它 做作坐座 有友又右由 以已意一易议 和合河何 为位未味卫
这者 会回汇 里理力利立丽历 到道倒 说硕 人仁任认 年念 国果过 来莱 个各 们门 大达打 中种终钟 上尚 要药
就旧酒救 出初处 也业夜叶 子字自资 对队 生声升胜 可克课客 家加佳价假 部步不布 书数属树术 看刊 还环 好号
没每美妹 店点电典 很恨 住主注著助 房方防放访 服福夫富府付 务物无五舞误 感干赶 觉决绝 前钱千签 台太态
内那拿 容荣 真针 情请清轻青 心新信欣 发法 经京精景静 期七其起气奇 员元原园源远 政正整证争
治制质志只知直之支至指 工公共功供 民名明命 行形型性星 分份纷 长常场厂 成城程称承 全权 体题提 同通统 学雪血
高告 关管官观馆 见间建件简 记计机几及级极集 进近今金 度都读独 面免 定订顶 相想向象像香 线先现 重众 动东懂
安案按暗 保报宝 比必笔 北被背 百白 次此 当党 等灯 第弟低底 多夺 而儿二 反饭范 非飞费 风封丰 更跟根
光广 海害 后候厚 话化花画 活火货 交教较叫 接结节街解 局举具句 空控 了乐 两量良 流六留 路录陆 论轮 满慢
难南男 平评瓶 强墙 求球 取去区 三散 少烧 社设 身神深 示始使 手受收首 水谁 思死四司 所索 天填 图土突
完晚玩 王往望忘网 文问闻 系喜西习 下夏 小笑校效 写些谢 需须 样阳养羊 研言演眼严 因音引印 应英影 用永
语雨与于 月越 运云 造早 战站展 张章 找照 装状 组足
"""
KINDS = ("typos", "homophones", "deletions")

Span = tuple[int, int, str]                                         # begin, end (exclusive), type


SAID_ALIKE = {character: group.replace(character, "") for group in HOMOPHONES.split() for character in group}


def perturbed(text: str, kind: str, *, share: float = 0.1, seed: int = 0, spans: Sequence[Span] = ()
              ) -> tuple[str, list[Span]]:
    """The text with so large a `share` of its Chinese characters changed, at least one, and its spans in it.

    Nothing changes places across the border of a span, and a span loses all but one of its characters at most.
    Homophones are given to as many characters as have any, where that is less. Raises ValueError for another kind.
    """
    if kind not in KINDS:
        raise ValueError(f"the kind is '{kind}'; it must be one of {', '.join(KINDS)}")
    drawn = random.Random(f"{seed} {kind} {zlib.crc32(text.encode())}")
    pieces, homes = list(text), _homes(len(text), spans)
    han = [i for i, character in enumerate(text) if "\u4e00" <= character <= "\u9fff"]
    others = "".join(text[i] for i in han)
    count = max(1, round(share * len(han)))
    left = {number: end - begin for number, (begin, end, _) in enumerate(spans)}
    changed: set[int] = set()                                       # a swap changes two
    for i in drawn.sample(han, len(han)):
        if count == 0:
            break
        home = homes[i]
        if i in changed:
            continue
        if kind == "deletions":
            if left.get(home, 2) < 2 or len(han) < 2:
                continue
            pieces[i] = ""
            left[home] = left.get(home, len(text)) - 1
        elif kind == "homophones":
            if text[i] not in SAID_ALIKE:
                continue
            pieces[i] = drawn.choice(SAID_ALIKE[text[i]])
        else:
            free = i + 1 < len(text) and i + 1 not in changed and homes[i + 1] == home
            if free and drawn.random() < 0.5:
                pieces[i], pieces[i + 1] = pieces[i + 1], pieces[i]
                changed.add(i + 1)
            else:
                pieces[i] = drawn.choice(others.replace(text[i], "") or text[i])
        changed.add(i)
        count -= 1
    return "".join(pieces), _rebased(spans, pieces)


def _homes(length: int, spans: Sequence[Span]) -> list[int]:
    """In which span each character stands; -1 for none."""
    homes = [-1] * length
    for number, (begin, end, _) in enumerate(spans):
        homes[begin:end] = [number] * (end - begin)
    return homes


def _rebased(spans: Sequence[Span], pieces: Sequence[str]) -> list[Span]:
    """Where the spans stand once each character became its piece."""
    starts = [0, *accumulate(map(len, pieces))]
    return [(starts[begin], starts[end], kind) for begin, end, kind in spans]
