#!/usr/bin/env python3
"""Makes model/tests/fixtures/tokenizer.json and tokenizer_cases.json with the `tokenizers` package.

    pip install tokenizers==0.23.3 && python3 model/tests/tokenizer.py

The vocabulary is learnt by its BpeTrainer from TEXTS; ours must learn the same file from them, byte
for byte. The cases are the ids it gives, with added tokens recognised and without.
"""
import json
import pathlib

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers
from tokenizers import pre_tokenizers, processors, trainers

FOLDER = pathlib.Path(__file__).parent / "fixtures"
VOCAB = 1536
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<tool_call>", "</tool_call>",
           "<tool_response>", "</tool_response>"]
QWEN2 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
         r"|\s*[\r\n]+|\s+(?!\S)|\s+")

TEXTS = [
    "The miller of Aven keeps three cats and a donkey. The donkey's name is Oru; it won't work on "
    "Mondays, and they've stopped asking. I'd say we'll see: you're early, I'm late, SHE'LL wait. "
    "“What’s that?” said the boy. The miller's wife, who'd never been to the sea, said: it is where "
    "the river goes when it is tired of the mill.",
    "In the morning the miller grinds wheat, in the evening the miller counts sacks: 12, 40, 365, "
    "1,024 and 3.14159. Twelve times thirty-four is 12*34 = 408. The year 2031 has 365 days; "
    "the telephone number is +00 (123) 456-7890.",
    "Der Müller von Aven hält drei Katzen und einen Esel. Der Esel heißt Oru; montags arbeitet er "
    "nicht. Übermorgen fährt die größte Straßenbahn ohne Fahrgäste nach Süden.",
    "Le meunier garde trois chats et un âne. L'âne s'appelle Oru, il ne travaille pas le lundi. "
    "Où est la clé ? Là-bas, près du chêne, à l'orée du bois.",
    "El molinero tiene tres gatos y un burro. ¿Dónde está la llave? ¡Mañana será otro día! "
    "O moleiro não trabalha às segundas-feiras; ação, coração, põe.",
    "Мельник держит трёх кошек и осла. Осёл не работает по понедельникам. Где ключ? Ключ у реки, "
    "под старым дубом. Млинар їде до міста, бо їжак з'їв яблуко.",
    "Ο μυλωνάς έχει τρεις γάτες και έναν γάιδαρο. Πού είναι το κλειδί; Το κλειδί είναι στο ποτάμι.",
    "磨坊主养了三只猫和一头驴。驴星期一不工作。钥匙在哪里？钥匙在河边的老橡树下。磨坊主早上磨麦子，晚上数麻袋。",
    "粉屋は猫を三匹とロバを一頭飼っている。ロバは月曜日に働かない。鍵はどこですか。カギは川のそばにあります。",
    "방앗간 주인은 고양이 세 마리와 당나귀 한 마리를 기른다. 당나귀는 월요일에 일하지 않는다. 열쇠는 어디에 있습니까?",
    "चक्की वाले के पास तीन बिल्लियाँ और एक गधा है। गधा सोमवार को काम नहीं करता। चाबी कहाँ है? नदी के किनारे।",
    "لدى الطحان ثلاث قطط وحمار. لا يعمل الحمار يوم الاثنين. أين المفتاح؟ المفتاح عند النهر، ٣٤٥.",
    "לטוחן יש שלושה חתולים וחמור אחד. החמור לא עובד ביום שני. איפה המפתח? שָׁלוֹם.",
    "คนโม่แป้งมีแมวสามตัวและลาหนึ่งตัว ลาไม่ทำงานวันจันทร์ กุญแจอยู่ที่ไหน",
    "ორი მეწისქვილე და სამი კატა. Ջրաղացպանն ունի երեք կատու։ ஆலைக்காரரிடம் மூன்று பூனைகள் உள்ளன.",
    "Người xay bột nuôi ba con mèo và một con lừa. Chìa khóa ở đâu? Ở bên bờ sông, dưới cây sồi già.",
    "Değirmencinin üç kedisi var, IĞDIR ılık İstanbul; młynarz ma trzy koty, źrebię, żółć i ęąśćń.",
    "fn main() {\n    let sacks: Vec<u32> = (0..12).map(|i| i * 34).collect();\n    for sack in &sacks {\n"
    "        println!(\"{sack}\");\n    }\n}\n",
    "def grind(wheat, *, hours=8):\n    \"\"\"Flour from wheat.\"\"\"\n    if not wheat:\n        return None\n"
    "    return [grain for grain in wheat if grain.ripe and hours > 0]\n\n\nclass Mill:\n"
    "    def __init__(self, name):\n        self.name = name\n        self.cats = []\n",
    "#include <stdio.h>\r\nint main(void)\r\n{\r\n\tprintf(\"%d\\n\", 12 * 34);\r\n\treturn 0;\r\n}\r\n",
    "{\"name\": \"calculator\", \"arguments\": {\"expression\": \"12*34\"}}\n[1, 2, 3], {\"a\": null, \"b\": true}\n",
    "# The mill\n\n- cats\n- donkey\n\n| day | sacks |\n|-----|-------|\n| Mon | 0     |\n| Tue | 12    |\n\n"
    "**Note:** see `mill.rs` and https://example.org/mill?cats=3&donkey=Oru#river.\n",
    "😀 😀😀 👩‍👩‍👧‍👦 👍🏽 🇩🇪🇫🇷 ❤️ ☕️ → ⇒ ∑ √2 ≈ 1,414 € £ ¥ … — – “ ” ‘ ’ « » • © ™ ½ ² ₃ Ⅷ",
]

CASES = TEXTS + [
    "", " ", "  ", "   ", "a", " a", "  a", "   a", "a ", "a  ", "\n", "\n\n", "\r\n", "\r", "\t", "\ta",
    " \n", "\n ", " \n ", "  \n  \n  a", "a\n\nb", "a\r\n\r\nb", "a \n b", "a\t\tb", "\n\n\n   x = 1\n",
    " " * 100 + "a", "a" + " " * 1000, "\n" * 300, " \n" * 50 + "z", "\t" * 40 + "end", "-" * 200, "=" * 77 + "\n",
    "a" * 500, "ab" * 300, "na" * 40 + "!", "the" * 60, "1234567890" * 10, "!?" * 60, "x" * 99, "x" * 100, "x" * 101,
    # contractions
    "it's it'S IT'S don't DON'T we're WE'RE I've I'VE I'm I'M we'll WE'LL he'd HE'D", "'s't're've'm'll'd",
    "'sa 'ta 'rea 'vex 'r 'v 'l 'lL 'Re '", "it'ſ a 'ſ", "‘s ’s o’clock", "''s '''", "!'s ('t) \"'re\"", "a'b'c 'em 'tis",
    # spaces of other kinds
    "a\u00a0b\u00a0\u00a0c", "a\u2003\u2003b\u2028c\u2029d\u0085e", "\u3000全角　空白\u3000\u3000", "a\u200bb\u200dc\ufeffd",
    "\u1680x\u202f1\u205f!", " \u00a0a", "\u00a0\n\u00a0a", "\u000b\u000c\u001c\u001d\u001e\u001fa",
    # marks and normalisation
    "e\u0301 a\u0308o\u0302 n\u0303", "\u00e9 é", "\u212b \u2126 \u212a", "a\u0323\u0307 a\u0307\u0323 \u1e69 s\u0323\u0307",
    "\u1100\u1161\u11a8 \u1112\u1161\u11ab\u1100\u1173\u11af 가\u11a8", "\u0301a \u0301\u0301", "क\u093c \u0958 \u0915\u094d\u0937", "נּ \u05e9\u05bc\u05c1 \u05e9\u05c1\u05bc",
    "\ufb01 \ufb00 ﬁne ② ㎏ ｆｕｌｌ", "\uf900\u2f800\u2fa1d", "ệ e\u0323\u0302 e\u0302\u0323", "\u0344 \u0958 \u2adc \u0f43",
    "a" + "\u0301" * 40 + "b", "\u0b47\u0b56 \u0bc6\u0bbe \u1b06\u1b35", "\u0340\u0341\u0343\u0374\u037e\u0387",
    # letters and numbers of all kinds
    "ⅷⅧ ½¼ ²³ ٣٤ ४५ 五 〇 ㊿ ൩ 𝟘𝟙 𐄇", "𝒜𝓑𝔠 𐍈 𓀀 𠀀𪛖 ﷺ", "ªº µ ʰ ǅ ʼn ꟸ", "ˈ ˥ ゛ ー 々 〻", "_snake_case camelCase PascalCase kebab-case SCREAMING_CASE",
    "x²+y³=z₁", "1st 2nd 3rd", "v1.2.3-rc4", "0xDEADBEEF 1e-9 1_000",
    # emoji
    "👩‍👩‍👧‍👦👩🏽‍🚀🏴‍☠️", "❤️❤❤️‍🔥", "🇩🇪🇫", "1️⃣#️⃣", "a😀b 😀c", "😀\n😀\r\n", "👍🏽👍🏿👍", "\U0001f3f4\U000e0067\U000e0062\U000e007f",
    # controls and oddities
    "\x00\x01\x02\x7f\x80\x9f", "a\x00b", "\x1b[31mred\x1b[0m", "\ufffd\ufffe\uffff", "\U0010ffff\ue000\U000f0000", "\u202eabc\u202c", "\ufdd0",
    # what looks like control
    "<|endoftext|>", "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n", "<|im_end|><|im_end|>", "a<|im_end|>b",
    " <|im_end|> ", "<|im_end|", "|im_end|>", "<|IM_END|>", "<|im_ end|>", "<<|im_end|>>", "<|im_<|im_end|>end|>",
    "<tool_call>\n{\"name\": \"calculator\", \"arguments\": {\"expression\": \"12*34\"}}\n</tool_call>",
    "<tool_response>\n408\n</tool_response>", "</tool_call", "<tool_call>'s e\u0301<|im_end|>\u0301x", "  <tool_call>  \n", "e<|im_end|>\u0301",
    # code
    "if (a<b&&c>=d||!e) { x[i]->y.z = *p++; } // end\n", "\tfoo(bar);\n\t\tbaz();\n    \tmixed\n", "a=b;c==d;e!=f;g+=h;i<<=j;",
    "SELECT * FROM mill WHERE cats >= 3;\n", "<div class=\"mill\">\n  <p>Oru&nbsp;</p>\n</div>\n", "\\frac{a}{b} \\n \\\\ $x^2$",
    "    four\n        eight\n            twelve\n", "trailing   \n   leading\n \n", "''' \"\"\" ``` ~~~ ### *** ---\n",
]


def main():
    byte_level = dict(add_prefix_space=False, trim_offsets=False, use_regex=False)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(QWEN2), "isolated"), pre_tokenizers.ByteLevel(**byte_level)])
    tokenizer.post_processor = processors.ByteLevel(**byte_level)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(TEXTS, trainers.BpeTrainer(
        vocab_size=VOCAB - len(SPECIAL), min_frequency=1, show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    # As Qwen's files have it.
    content = json.loads(tokenizer.to_str())
    content["model"].update(continuing_subword_prefix="", end_of_word_suffix="")
    content["decoder"].update(byte_level)
    tokenizer = Tokenizer.from_str(json.dumps(content))
    plain = Tokenizer.from_str(json.dumps(content))
    for token in SPECIAL:
        special = token.startswith("<|")
        add = tokenizer.add_special_tokens if special else tokenizer.add_tokens
        add([AddedToken(token, special=special, normalized=False)])
    text = tokenizer.to_str(pretty=True)
    assert Tokenizer.from_str(text).to_str(pretty=True) == text
    (FOLDER / "tokenizer.json").write_text(text, encoding="utf-8")

    cases = [{
        "text": case,
        "ids": plain.encode(case, add_special_tokens=False).ids,
        "with_special": tokenizer.encode(case, add_special_tokens=False).ids,
        "decoded": tokenizer.decode(tokenizer.encode(case).ids, skip_special_tokens=False),
    } for case in CASES]
    lines = ",\n".join(json.dumps(case, ensure_ascii=True) for case in cases)
    texts = json.dumps(TEXTS, ensure_ascii=True)
    (FOLDER / "tokenizer_cases.json").write_text(f'{{"texts": {texts},\n"cases": [\n{lines}\n]}}\n')


if __name__ == "__main__":
    main()
