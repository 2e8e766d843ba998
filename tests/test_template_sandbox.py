"""A stranger's template: what it may use works as in Jinja, what it may not is refused, and all of it ends."""

import jinja2
import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment

from tokenizer import template_sandbox
from tokenizer.template_sandbox import Environment, TooMuch, line_of
from tokenizer.template_text import LEARNED, WRITTEN, Text

VALUES = {"messages": [{"role": "user", "content": " Hi <b> \n"},
                       {"role": "assistant", "content": "你好", "n": [1, 2.5]}]}

ORDINARY = [
    "{% for m in messages %}{{ loop.index0 }}{{ m.role ~ ': ' ~ m['content'] | trim }}{{ ', ' if not loop.last }}"
    "{% endfor %}",
    "{% for m in messages if m.role == 'user' %}{{ m.content }}{% else %}none{% endfor %}",
    "{% for x in range(9) %}{% if x == 2 %}{% continue %}{% endif %}{% if x > 4 %}{% break %}{% endif %}{{ x }}"
    "{% endfor %}",
    "{% set ns = namespace(a='', n=0) %}{% for m in messages %}{% set ns.a = ns.a + m.role[:1] | upper %}"
    "{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.a }}{{ ns.n }}",
    "{% macro turn(role, text='-') %}<{{ role }}>{{ text }}{{ caller() if caller }}{% endmacro %}{{ turn('a') }}"
    "{% call turn('b', 'c') %}inside{% endcall %}",
    "{% set block %}a {{ messages[0].content }} b{% endset %}{{ block | length }}{{ block }}",
    "{% filter upper %}abc {{ messages[1].role }}{% endfilter %}",
    "{{ messages | map(attribute='role') | join('-') }}"
    "{{ messages | selectattr('role', 'equalto', 'user') | list | length }}",
    "{{ ['b', 'a'] | sort | join }}{{ [3, 1, 2] | max }}{{ {'a': 1, 'b': 2}.items() | list }}"
    "{{ dict(a=1).get('b', 5) }}",
    "{{ 'a,b,c'.split(',')[1:] | join('+') }}{{ 'x' * 3 }}{{ 7 // 2 }}{{ 7 % 4 }}{{ 2 ** 10 }}{{ -3 | abs }}"
    "{{ 1 / 4 }}",
    "{{ '%s is %d' % ('it', 3) }}{{ '%05.1f' | format(2.25) }}{{ '{} and {n:>4}'.format('x', n=7) }}",
    "{{ messages[1].content in 'x你好y' }}{{ messages[0].content.startswith(' H') }}{{ 'b' not in ['a'] }}"
    "{{ 1 < 2 <= 2 }}{{ 1 < 2 > 2 }}",
    "{{ undefined_thing }}{{ undefined_thing is defined }}{{ undefined_thing | default('d') }}{{ none is none }}",
    "{{ messages[0].content | e }}{{ '<' | safe + messages[0].content }}{{ 'a b' | title }}{{ 'x' | indent(2, true) }}",
    "{{ 'a' if messages | length > 5 else 'b' }}{{ messages[-1]['n'] | first }}{{ messages[1].n | sum }}"
    "{{ [1, [2]] | string }}",
    "{%- set a, b = 1, 'two' -%}\n  {{ a }}{{ b }}\n{% if a %}\n  yes\n{% endif %}\n{# gone #}\n"
    "{% raw %}{{ x }}{% endraw %}\n",
    "{% for key, value in {'k': [1], 'l': 'v'}.items() recursive %}{{ key }}{{ value }}{% endfor %}",
    "{% for x in [1, [2, [3]]] recursive %}{{ loop(x) if x is iterable else x }}{{ loop.depth }}{% endfor %}",
    "{{ messages | groupby('role') | map('first') | list }}{{ 'AbC' | lower }}{{ 'x' is string }}{{ [] is iterable }}",
    "{{ ' '.join(['a', messages[0].role]) }}{{ 'aXbX'.replace('X', '-', 1) }}{{ 'abc'[::-1] }}{{ 'abc'[1] }}"
    "{{ 'b' | center(5) }}",
]

ENDLESS = {
    "loops in loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "loops that take nothing":
        "{% for a in range(99999) %}{% for b in range(99999) if false %}{% endfor %}{% endfor %}",
    "loops over filters": "{% for a in range(99999) %}{{ range(99999) | map('string') | list | length }}{% endfor %}",
    "doubling calls": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
}

TWICE = "{% set ns = namespace(x=(1,)) %}{% for i in range(99) %}{% set ns.x = (ns.x, ns.x) %}{% endfor %}"
TOO_LARGE = {
    "'a' * 10**9": "{{ 'a' * 10 ** 9 }}",
    "[0] * 10**9": "{{ [0] * 10 ** 9 }}",
    "a tower of powers": "{{ 9 ** (9 ** 9) }}",
    "squares of squares":
        "{% set ns = namespace(x=7) %}{% for i in range(99) %}{% set ns.x = ns.x * ns.x %}{% endfor %}",
    "doubled by +": "{% set ns = namespace(x='x') %}{% for i in range(99) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "doubled by ~": "{% set ns = namespace(x='x') %}{% for i in range(99) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    "lists that hold themselves twice": TWICE + "{{ ns.x }}",
    "and are compared": TWICE + "{% if ns.x == [ns.x[0], ns.x[0]] %}{% endif %}",
    "and are keys": TWICE + "{% set y = {ns.x: 1} %}",
    "and are looked up": TWICE + "{{ {}[ns.x] }}",
    "and are joined": TWICE + "{{ [ns.x] | join }}",
    "wide numbers": "{{ '%999999999d' % 1 }}",
    "wide by a value": "{{ '%*d' % (999999999, 1) }}",
    "wide fields": "{{ '{:999999999}'.format(1) }}",
    "wide fields by a value": "{{ '{:{w}}'.format(1, w=999999999) }}",
    "many directives": "{{ ('%(a)s' * 99999) % {'a': 'b' * 99999} }}",
    "a wide filter": "{{ 'a' | center(999999999) }}",
    "a wide method": "{{ 'a'.ljust(999999999) }}",
    "a replacement": "{{ ('a' * 99999) | replace('a', 'b' * 99999) }}",
    "a replacement by method": "{{ ('a' * 99999).replace('a', 'b' * 99999) }}",
    "many parts": "{{ ('a ' * 999999).split() }}",
    "a joint": "{{ range(99999) | map('string') | join('x' * 999999) }}",
    "a joint by method": "{{ ('x' * 999999).join(range(99999) | map('string')) }}",
    "an indent": "{{ ('a\n' * 99999) | indent(99999) }}",
    "JSON with an indent": "{{ ([1] * 9999) | tojson(indent=99999) }}",
    "a batch": "{{ [1] | batch(999999999, 'x') | list }}",
    "a rounding": "{{ 1 | round(999999999, 'ceil') }}",
    "digits": "{{ ('9' * 99999) | int }}",
    "sums of lists": "{{ ([[1]] * 9999) | sum(start=[]) }}",
    "a wide date": "{{ strftime_now('%999999999d') }}",
    "output without end": "{% for i in range(99999) %}{{ 'y' * 99999 }}{% endfor %}",
    "values without end": "{% for i in range(99999) %}{% set x = 'y' * 9999999 %}{% endfor %}",
}

FORBIDDEN = {
    "Python's inner parts": "{{ ''.__class__.__mro__ }}",
    "by brackets": "{{ ''['__class__'].x }}",
    "by a filter": "{{ '' | attr('__class__') }}{{ ('' | attr('__class__')).x }}",
    "by a format": "{{ '{0.__class__.x}'.format(1) }}",
    "by a namespace": "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
    "by a namespace's beginning": "{{ namespace(__init__=1) }}",
    "a list changed": "{{ messages.append(1) }}",
    "an object changed": "{{ messages[0].update({'role': 'x'}) }}",
    "who wrote a text": "{{ messages[0].content.with_origin([9, 0].index) }}",
    "slow codecs": "{{ ('x' * 99999).encode('idna') }}",
    "large bytes": "{{ (5).to_bytes(999999999, 'big') }}",
    "files": "{% include '/etc/passwd' %}",
    "other templates": "{% extends 'x' %}",
    "words at random": "{{ lipsum(99999) }}",
}


def run(template, **values):
    environment = Environment()
    compiled = environment.from_string(template)
    environment.begin()
    return compiled.render(VALUES | values)


@pytest.mark.parametrize("template", ORDINARY)
def test_two_ways_what_templates_use_works_as_in_jinja(template):
    judge = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
    assert run(template) == judge.from_string(template).render(VALUES)


@pytest.mark.parametrize("name", ENDLESS)
def test_refusal_of_templates_that_would_not_end(name, monkeypatch):
    monkeypatch.setattr(template_sandbox, "SECONDS", 0.05)
    with pytest.raises(TooMuch, match="it takes longer than 0.05 seconds"):
        run(ENDLESS[name])


def test_refusal_of_a_template_longer_than_any():
    assert Environment().compiled("a" * template_sandbox.LONGEST)
    with pytest.raises(TooMuch, match="it is longer than 262,144 characters"):
        Environment().compiled("a" * template_sandbox.LONGEST + "a")


def test_refusal_of_a_macro_that_calls_itself():
    with pytest.raises(RecursionError):
        run("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}")


@pytest.mark.parametrize("name", TOO_LARGE)
def test_refusal_of_values_that_balloon(name):
    with pytest.raises(TooMuch, match="it (works on|writes|makes|computes|gives|reads|adds)|its (format|date) asks"):
        run(TOO_LARGE[name])


@pytest.mark.parametrize("name", FORBIDDEN)
def test_refusal_of_what_lies_outside(name):
    with pytest.raises((jinja2.TemplateError, TypeError, AttributeError)) as caught:
        run(FORBIDDEN[name])
    assert not isinstance(caught.value, TooMuch)


def test_property_each_rendering_has_its_own_time(monkeypatch):
    monkeypatch.setattr(template_sandbox, "SECONDS", 0.05)
    environment = Environment()
    endless, short = environment.from_string(ENDLESS["loops in loops"]), environment.from_string("{{ 1 + 1 }}")
    with pytest.raises(TooMuch):
        endless.render()
    environment.begin()
    assert short.render() == "2"


def test_worked_example_what_hugging_face_adds():
    assert run("{{ messages[0] | tojson }}") == '{"role": "user", "content": " Hi <b> \\n"}'
    assert run("{{ {'你': 1} | tojson }}{{ [1] | tojson(indent=2) }}{{ '你' | tojson(ensure_ascii=true) }}") == \
        '{"你": 1}[\n  1\n]"\\u4f60"'
    assert len(run("{{ strftime_now('%Y-%m-%d') }}")) == 10
    with pytest.raises(jinja2.TemplateError, match="^no way$"):
        run("{{ raise_exception('no ' + 'way') }}")
    learned = run("{% generation %}a{{ messages[1].content }}{% endgeneration %}b", messages=VALUES["messages"])
    assert [origin & LEARNED for _, _, origin in learned.stretches()] == [LEARNED, LEARNED, 0]


def test_property_the_templates_own_words_are_known():
    told = Text("told")
    written = run("a{{ 'b' ~ told }}{{ ['c', told] | join('d') }}{% set x %}e{{ told }}{% endset %}{{ x | trim }}"
                  "{% macro f(y) %}f{{ y }}{% endmacro %}{{ f('g') }}{{ '%s' | format(told) }}"
                  "{{ told.replace('t', 'h') }}", told=told)
    assert written == "abtoldcdtoldetoldfgtoldhold"
    said = [written[begin:end] for begin, end, origin in written.stretches() if not origin & WRITTEN]
    assert said == ["told", "told", "told", "told", "old"]


def test_worked_example_the_line_at_which_it_went_wrong():
    for template, line in (("a\nb\n{{ 1 / 0 }}", 3), ("a\n{% if %}", 2),
                           ("{% macro f() %}\n{{ x.y.z }}{% endmacro %}{{ f() }}", 2)):
        with pytest.raises((ZeroDivisionError, jinja2.TemplateError)) as caught:
            run(template)
        assert line_of(caught.value) == line
    assert line_of(ValueError("x")) is None
