"""Sentences of the synthetic conversations, written for this project: a bicycle workshop.

Every language has questions of customers, answers of the assistant, and words for the gaps.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Language:
    """The sentences of one language. Gaps: {part}, {day}, {hour}, {price}, {count}."""

    code: str
    questions: tuple[str, ...]
    answers: tuple[str, ...]
    parts: tuple[str, ...]
    days: tuple[str, ...]


LANGUAGES = (
    Language(
        "en",
        (
            "My {part} squeaks whenever it rains. Can you look at it on {day}?",
            "How much would a new {part} be, fitted?",
            "Is {day} at {hour} still free? I could also come later.",
            "Please add a second {part} to the order, the cheap one is fine.",
            "I forgot: did you keep the old {part}? I would like it back.",
            "Thanks! And what do I tell my neighbour, whose {part} came loose again?",
        ),
        (
            "We have {count} of them here. Fitted, a {part} comes to {price}.",
            "{day} at {hour} is yours. Bring the bicycle ten minutes early, please.",
            "I noted the {part} on your card; nothing is ordered before you say so.",
            "The {part} is out of stock until {day}. A used one would be {price}.",
            "It is usually the bolt, not the {part}. Tighten it, ride a mile, tighten it again.",
        ),
        ("chain", "rear brake", "saddle", "bottom bracket", "dynamo light"),
        ("Monday", "Wednesday", "Saturday"),
    ),
    Language(
        "de",
        (
            "Mein Rad eiert, vermutlich {part}. Passt Ihnen {day} um {hour}?",
            "Was kostet {part} ungefähr, mit Einbau?",
            "Können Sie bitte nachsehen, ob {part} schon da ist?",
            "Ich möchte den Termin auf {day} verschieben, größere Eile habe ich nicht.",
        ),
        (
            "{part}: {count} Stück am Lager, zusammen {price}.",
            "Gern, {day} um {hour}. Die Straße ist gesperrt, bitte durch den Hof kommen.",
            "Das dürfte nicht {part} sein; wir prüfen es, bevor wir etwas bestellen.",
        ),
        ("die Kette", "der Freilauf", "das Tretlager", "die Vorderradbremse"),
        ("Dienstag", "Donnerstag", "übernächsten Freitag"),
    ),
    Language(
        "es",
        (
            "¿Tienen {part} para una bicicleta de niña? La necesito el {day}.",
            "¿Cuánto tardarían en cambiar {part}?",
            "Mañana no puedo; ¿queda hueco el {day} a las {hour}?",
        ),
        (
            "Quedan {count}; con el montaje serían {price}.",
            "Apuntado: {day} a las {hour}. Si llueve, no pasa nada, tenemos techo.",
            "Primero revisaríamos {part}; a veces basta con limpiarla.",
        ),
        ("la cadena", "el sillín", "la rueda trasera", "el timbre"),
        ("lunes", "miércoles", "sábado"),
    ),
    Language(
        "ru",
        (
            "Здравствуйте, у меня опять скрипит {part}. Можно приехать в {day}?",
            "Сколько будет стоить {part} вместе с установкой?",
            "Запишите меня, пожалуйста, на {hour}.",
        ),
        (
            "На складе {count} шт., с установкой {price}.",
            "Записал: {day}, {hour}. Захватите ключ от замка.",
            "Похоже, дело не в этом: {part} ещё послужит.",
        ),
        ("цепь", "седло", "задний тормоз", "переключатель"),
        ("понедельник", "среду", "субботу"),
    ),
    Language(
        "el",
        (
            "Καλημέρα, χάλασε πάλι {part}. Έχετε χρόνο {day};",
            "Πόσο κοστίζει {part} με την τοποθέτηση;",
        ),
        (
            "Έχουμε {count}, όλα μαζί {price}.",
            "Σας περιμένω {day} στις {hour}.",
        ),
        ("η αλυσίδα", "το φρένο", "η σέλα"),
        ("τη Δευτέρα", "την Πέμπτη"),
    ),
    Language(
        "zh",
        (
            "你好，我的{part}坏了，{day}可以修吗？",
            "换一个{part}大概要多少钱？",
            "那就{day}{hour}吧，我骑过来。",
            "邻居家孩子的车也想一起修，{part}松了。",
        ),
        (
            "店里还有{count}个，连工带料{price}。",
            "好的，已经约在{day}{hour}，请提前十分钟到。",
            "先别急着换{part}，上点油多半就好了。",
        ),
        ("链条", "后刹车", "车座", "前灯"),
        ("星期一", "星期三", "星期六"),
    ),
    Language(
        "ja",
        (
            "{part}から変な音がします。{day}に見てもらえますか。",
            "{part}の交換はいくらぐらいですか？",
            "では{day}の{hour}でお願いします。",
        ),
        (
            "在庫は{count}個です。工賃込みで{price}になります。",
            "{day}の{hour}に承りました。防犯登録の控えもお持ちください。",
            "{part}はまだ使えそうです。まず調整してみますね。",
        ),
        ("チェーン", "ブレーキ", "サドル", "ライト"),
        ("月曜日", "木曜日", "土曜日"),
    ),
    Language(
        "ar",
        (
            "مرحبا، {part} لا يعمل جيدا. هل عندكم موعد يوم {day}؟",
            "كم يكلف {part} مع التركيب؟",
        ),
        (
            "لدينا {count} قطع، والسعر مع التركيب {price}.",
            "حجزت لك يوم {day} في الساعة {hour}.",
        ),
        ("السلسلة", "المكبح الخلفي", "المقعد"),
        ("الاثنين", "الأربعاء", "السبت"),
    ),
    Language(
        "hi",
        (
            "नमस्ते, मेरी साइकिल की {part} ढीली हो गई है। क्या {day} को समय मिलेगा?",
            "नई {part} लगवाने में कितना खर्च आएगा?",
        ),
        (
            "हमारे पास {count} हैं, लगाने के साथ {price} लगेंगे।",
            "{day} को {hour} बजे आ जाइए।",
        ),
        ("चेन", "घंटी", "गद्दी"),
        ("सोमवार", "गुरुवार", "शनिवार"),
    ),
)
