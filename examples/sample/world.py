"""The invented world of the sample corpus: its people and their facts, and the small word lists of both languages."""

from __future__ import annotations

from dataclasses import dataclass

LANGUAGES = ("en", "zh")


@dataclass(frozen=True)
class Word:
    """One thing with its name in both languages."""

    en: str
    zh: str

    def __getitem__(self, lang: str) -> str:
        """Return the name in one language."""
        return self.en if lang == "en" else self.zh


def _words(table: str) -> tuple[Word, ...]:
    """Read 'english=中文' entries separated by blanks; an underscore stands for a blank inside a word."""
    pairs = (entry.split("=") for entry in table.split())
    return tuple(Word(en.replace("_", " "), zh) for en, zh in pairs)


NAMES = _words(
    "Lina=丽娜 Tom=汤姆 Anna=安娜 Peter=彼得 Mary=玛丽 Jack=杰克 Lucy=露西 David=大卫 Emma=艾玛 Paul=保罗 "
    "Nina=妮娜 Mark=马克 Rosa=罗莎 Leo=里奥 Sara=莎拉 Max=麦克 Ella=艾拉 Sam=山姆 Julia=朱莉 Oscar=奥斯卡"
)
CITIES = _words("Northport=北港 Stonefield=石原 Riverside=河边 Sunhill=阳山 Lakewood=湖林 Westgate=西门 Greenvale=绿谷")
JOBS = _words("doctor=医生 teacher=老师 farmer=农民 cook=厨师 driver=司机 painter=画家 writer=作家")
PETS = _words("cat=猫 dog=狗 horse=马 rabbit=兔子 bird=鸟 fish=鱼")
COLOURS = _words("red=红色 blue=蓝色 green=绿色 yellow=黄色 black=黑色 white=白色")
ANIMALS = (*PETS, *_words("cow=牛 sheep=羊 tiger=老虎"))
PLANTS = _words("tree=树 rose=玫瑰 grass=草 rice=水稻 bamboo=竹子")
OBJECTS = _words("table=桌子 chair=椅子 lamp=灯 book=书 cup=杯子 door=门 boat=船")
COUNTED = _words("apples=苹果 pears=梨 eggs=鸡蛋 stamps=邮票 stones=石头 cakes=蛋糕")
DAYS = _words(
    "Monday=星期一 Tuesday=星期二 Wednesday=星期三 Thursday=星期四 Friday=星期五 Saturday=星期六 Sunday=星期日"
)
SEASONS = _words("spring=春天 summer=夏天 autumn=秋天 winter=冬天")
WEATHER = _words("sunny=晴朗 rainy=下雨 windy=刮风 cloudy=多云")
OPPOSITES = tuple(
    zip(
        _words("hot=热 big=大 fast=快 new=新 long=长 high=高 heavy=重 early=早 full=满 open=开 strong=强 wet=湿"),
        _words("cold=冷 small=小 slow=慢 old=旧 short=短 low=低 light=轻 late=晚 empty=空 shut=关 weak=弱 dry=干"),
        strict=True,
    )
)


@dataclass(frozen=True)
class Person:
    """An invented person and what is known of them; the same in every run, whatever the seed."""

    name: Word
    city: Word
    job: Word
    pet: Word
    colour: Word


# Strides that share no factor with the lists' lengths, so that no fact can be told from another.
PEOPLE = tuple(
    Person(
        name,
        city=CITIES[(5 * i + i // 7) % len(CITIES)],
        job=JOBS[(3 * i + i // 5) % len(JOBS)],
        pet=PETS[(5 * i + i // 6) % len(PETS)],
        colour=COLOURS[(i + i // 4) % len(COLOURS)],
    )
    for i, name in enumerate(NAMES)
)

_SMALL_NUMBERS = _words(
    "zero=零 one=一 two=二 three=三 four=四 five=五 six=六 seven=七 eight=八 nine=九 ten=十 eleven=十一 "
    "twelve=十二 thirteen=十三 fourteen=十四 fifteen=十五 sixteen=十六 seventeen=十七 eighteen=十八 nineteen=十九"
)
_TENS = _words("twenty=二十 thirty=三十 forty=四十 fifty=五十 sixty=六十 seventy=七十 eighty=八十 ninety=九十")


def number_words(number: int) -> Word:
    """Spell a number from 0 to 99 in both languages: 42 is 'forty two' and '四十二'."""
    if number < len(_SMALL_NUMBERS):
        return _SMALL_NUMBERS[number]
    tens, ones = _TENS[number // 10 - 2], _SMALL_NUMBERS[number % 10]
    return Word(f"{tens.en} {ones.en}", tens.zh + ones.zh) if number % 10 else tens
