"""A MediaWiki dump becomes plain text: what is prose stays, what is markup goes."""

import bz2
import time
import tracemalloc

import pytest

from llama.clean.mediawiki import articles, plain_text

DUMP = """<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.11/" version="0.11" xml:lang="zh">
  <siteinfo><sitename>Wikipedia</sitename></siteinfo>
  <page>
    <title>北京</title><ns>0</ns><id>1</id>
    <revision><id>2</id><text bytes="9" xml:space="preserve">'''北京'''，[[中国|中华人民共和国]]首都。
== 历史 ==
* &lt;ref name="a" /&gt;[[元朝]]称大都。&lt;ref&gt;书&lt;/ref&gt;
== 参考资料 ==
表</text></revision>
  </page>
  <page><title>京</title><ns>0</ns><redirect title="北京" /><revision><text>#重定向 [[北京]]</text></revision></page>
  <page><title>讨论:北京</title><ns>1</ns><revision><text>谈</text></revision></page>
</mediawiki>
"""


def test_worked_example_an_article_of_three(tmp_path):
    path = tmp_path / "pages-articles.xml.bz2"
    path.write_bytes(bz2.compress(DUMP.encode()))
    assert list(articles(path)) == [("北京", "北京，中华人民共和国首都。\n历史\n元朝称大都。", 3)]


def test_worked_example_nested_templates_go():
    assert plain_text("前{{信息框|名={{语言|[[中文]]}}|图=[[File:a.jpg|{{x}}]]}}后") == "前后"


@pytest.mark.parametrize("markup, text", [
    ("[[File:地图.png|thumb|[[北京]]的地图]]正文", "正文"),
    ("[[Category:城市]]正文[[en:Beijing]]", "正文"),
    ("-{zh-hans:软件; zh-hant:軟體}-", "软件"),
    ("-{zh-tw:軟體;zh-cn:软件;}-", "软件"),
    ("-{乾}-隆", "乾隆"),
    ("[https://example.org 官网]", "官网"),
    ("甲{| class=\"x\"\n|-\n| 表 {| 内 |} \n|}乙", "甲乙"),
    ("<!-- 注 -->甲<br />乙<math>x < 1</math>", "甲\n乙"),
    ("甲<ref name=a>一</ref>乙<REF name='b' />丙<ref>没有收尾", "甲乙丙没有收尾"),
    ("[[CSI: 犯罪现场]]与[[:en:Beijing|北京]]、[[:Category:城市]]", "CSI: 犯罪现场与北京、Category:城市"),
    ("-{H|zh-cn:博客; zh-tw:部落格}-甲-{A|zh-cn:鼠标;zh-tw:滑鼠}-", "甲鼠标"),
    ("甲<!-- 没有收尾", "甲"),
    ("{| 坏表\n| 格\n|-\n正文\n{{坏模板|x", "正文"),
    ("甲{{信息|x={{#if:{{{y|}}}|{{{y}}}|}}}}乙", "甲乙"),
    ("[[File:a.jpg|[[甲]]，[http://a.b 乙]]]正文", "正文"),
    ("{{lang|en|''Linux''}}，{{tsl|en|Tux|企鹅}}、{{link-en|[[企鹅|鹅]]|Tux}}、{{le|甲|A|乙}}", "Linux，企鹅、鹅、乙"),
    ("# 一\n#* 二\n\n\n三__NOTOC__", "一\n二\n三"),
    ("'''''重'''''点&amp;nbsp;&lt;b&gt;", "重点&nbsp;<b>"),
    ("没有收尾的{{模板", "没有收尾的{{模板"),
])  # fmt: skip
def test_worked_examples_of_markup(markup, text):
    assert plain_text(markup) == text


def test_worked_example_of_several_revisions_the_last(tmp_path):
    path = tmp_path / "history.xml"
    path.write_text("<mediawiki><page><title>甲</title><ns>0</ns><revision><text>旧</text></revision><revision><text>新"
                    "</text></revision></page></mediawiki>", encoding="utf-8")
    assert list(articles(path)) == [("甲", "新", 1)]


@pytest.mark.parametrize("unit", ["<ref>", "<!--", "{{", "[[", "{|", "[http://a ", "-{", "<math>", "[[a|", "{{lang|"])
def test_property_what_is_never_closed_takes_no_hours(unit):
    begun = time.process_time()
    plain_text(unit * (200_000 // len(unit)))
    plain_text("{{" * 2000 + "}}" * 2000)
    assert time.process_time() - begun < 2


def test_property_a_dump_is_never_held_whole(tmp_path):
    page = DUMP[DUMP.index("  <page>") : DUMP.index("</page>") + len("</page>\n")]
    path = tmp_path / "big.xml"
    path.write_text("<mediawiki>" + page.replace("大都。", "大都。" * 300) * 3000 + "</mediawiki>", encoding="utf-8")
    tracemalloc.start()
    count = sum(1 for _ in articles(path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 3000 and peak < path.stat().st_size / 4


@pytest.mark.parametrize("content, words", [
    ("<mediawiki><page>", "big.xml:1: this is no XML, or cut short"),
    ("plain\ntext", "big.xml:1: this is no XML"),
    ("<html><page></page></html>", "big.xml:1: the file begins with <html>, and a dump of MediaWiki with <mediawiki>"),
    ('<!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]>\n<x>&b;</x>', "big.xml:1: the file declares"),
])  # fmt: skip
def test_refusal_of_what_is_no_dump(tmp_path, content, words):
    path = tmp_path / "big.xml"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=words):
        list(articles(path))
