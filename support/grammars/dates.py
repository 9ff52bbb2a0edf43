"""Date understanding: a sentence that implies today's date, and a question about a day near it.

Steps begin with the day that the sentence names, move to today, then to the day asked for. A day is moved in small
steps: `04/30/2021, +01: 31-30=01, today is 05/01/2021, -10: 01+30=31-10=21, 04/21/2021`.
"""

from calendar import monthrange
from datetime import date, timedelta

from support.grammars.common import NTH, NUMBER, scores

TH = {1: "st", 2: "nd", 3: "rd", 21: "st", 22: "nd", 23: "rd", 31: "st"}


def length(year: int, month: int) -> int:
    """How many days the month has."""
    return monthrange(year, month)[1]


def move(day: date, years: int = 0, months: int = 0, days: int = 0) -> tuple[date, str]:
    """Another day, and the steps that lead there; ValueError where there is none, such as a month after January 31."""
    year, month, number = day.year, day.month, day.day + days
    if years or months:
        year, month = divmod(12 * (day.year + years) + day.month - 1 + months, 12)
        return day.replace(year=year, month=month + 1), f"{years:+03} years" if years else f"{months:+03} months"
    if days < 0:
        work, number = "", day.day
        while number + days < 1:  # borrow the month before
            year, month = (year, month - 1) if month > 1 else (year - 1, 12)
            work += f"{number:02}+{length(year, month)}="
            number += length(year, month)
        return date(year, month, number + days), f"{days:+03}: {work}{number:02}-{-days:02}={number + days:02}"
    work = f"{day.day:02}+{days:02}={number:02}"
    while number > length(year, month):
        number -= length(year, month)
        work += f"-{length(year, month)}={number:02}"
        year, month = (year, month + 1) if month < 12 else (year + 1, 1)
    return date(year, month, number), f"{days:+03}: {work}"


def month_end(day: date) -> date:
    """The last day of its month."""
    return day.replace(day=length(day.year, day.month))


# fmt: off
# Ways to say what day today is, the plain ones first: the text about a day d and a number n (see `date_understanding`),
# how far today is from the day that the text names, and that day if it is not d.
TODAYS = [
    ("Today is {mdy}.", {}),
    ("It is {us} today.", {}),
    ("Yesterday was {d:%B} {d.day}, {d.year}.", {"days": 1}),
    ("Tomorrow is {us}.", {"days": -1}),
    ("Today, {us}, is a day that we will never forget.", {}),
    ("Today is the first day of {d.year}.", {}, lambda d, n: date(d.year, 1, 1)),
    ("This is the last day of {d.year}.", {}, lambda d, n: date(d.year, 12, 31)),
    ("The day before yesterday was {us}.", {"days": 2}),
    ("Jane booked a flight for tomorrow, {mdy}.", {"days": -1}),
    ("Jane scheduled {n} appointments with {more} people for tomorrow ({d:%a}, {us}).", {"days": -1}),
    ("Yesterday, {mdy}, Jane ate 2 pizzas and {n} wings.", {"days": 1}),
    ("The current local time is {n}:02 pm of {us}.", {}),
    ("Today is {mdy}. Jane's appointment will be {n} days later.", {}),
    ("The deadline is {mdy}, which is {n} days away from now.", lambda n: {"days": -n}),
    ("It was {d:%b} {day}, {d.year} a week ago.", {"days": 7}),
    ("Today's meeting is rescheduled to {n} am tomorrow, {us}.", {"days": -1}),
    ("The concert was scheduled to be on {d:%m/%d/%Y}, but was delayed by one day to today.", {"days": 1}),
    ("Today is {d.month}/{d.day}. Jane is watching NFL {d.year}.", {}),
    ("Today is {d.month}/{d.day}, and it is Jane's {nth} time in the year {d.year} to see a meteor shower.", {}),
    ("{d.year} is coming in {n} days.", lambda n: {"days": -n}, lambda d, n: date(d.year, 1, 1)),
    ("Today is Christmas Eve of {d.year}.", {}, lambda d, n: date(d.year, 12, 24)),
    ("Jane is celebrating the last day of {d:%b} {d.year}.", {}, lambda d, n: month_end(d)),
    ("Today is the {nth} day of the {month} month of {d.year}.", {}, lambda d, n: date(d.year, d.month % 9 + 1, n)),
    ("Today is the last day of the first quarter of {d.year}.", {}, lambda d, n: date(d.year, 3, 31)),
    ("Jane quit her job on {mdy}. {six} days have passed since then.", lambda n: {"days": 6 * n}),
    ("On {d:%b} {day}, {d.year} Jane bought {five} eggs. She ate one per day. Today she ran out of eggs.",
     lambda n: {"days": 5 * n}),
    ("{mdy} is like yesterday to Jane, but that is actually {years} years ago.", lambda n: {"years": n + 1}),
    ("Jane and John married on {mdy}. It is their {n}-year anniversary today.", lambda n: {"years": n}),
    ("Jane and John married on {mdy}. Today is their golden wedding anniversary.", {"years": 50}),
    ("Jane was born on the last day of {d:%B} in {d.year}. Today is her {four}-year-old birthday.",
     lambda n: {"years": 4 * n}, lambda d, n: month_end(d)),
    ("Jane got her job in {d.year}. Today is her {n}-year work anniversary. She still remembers that on {d:%b} {d.day}, "
     "her second day at work, she spilled coffee on her laptop.", lambda n: {"years": n}, lambda d, n: move(d, days=-1)[0]),
    ("Jane visits the bookstore on the {day} of each month starting from the {d:%B} of {d.year}. It is her {visit} visit "
     "to the bookstore today.", lambda n: {"months": n - 1}),
    ("In the UK, people usually put the day before the month when formatting the date. Therefore, today is {d:%d/%m/%Y} "
     "to them.", {}),
    ("Jane thinks today is {us}, but John thinks today is {d.month}/{next}/{d.year}. {who} is correct.", {},
     lambda d, n: d.replace(day=d.day + n % 2)),
    ("Jane thought today is {us}, but today is in fact {d:%b} {next}, which is 1 day later.", {"days": 1}),
]
ASKED = {
    "today": {}, "tomorrow": {"days": 1}, "yesterday": {"days": -1}, "24 hours later": {"days": 1},
    "10 days ago": {"days": -10}, "one week ago from today": {"days": -7}, "one week from today": {"days": 7},
    "a month ago": {"months": -1}, "one year ago from today": {"years": -1},
}
# fmt: on


def wrong_days(rng, day: date, count: int) -> list[date]:
    """Days near the right one, as the official file has them: some days, months or years off, or several of these."""
    days = [day]
    while len(days) <= count:
        near = rng.choice(days[-3:])  # if all were counted from the right day, it would stand out as their middle
        how = rng.choice(("days", "days", "month", "year", "anything"))
        if how == "days":
            near += timedelta(days=rng.choice((-1, 1)) * rng.choice((1, 1, 2, 3, 7, 10, rng.randint(1, 30))))
        if how in ("month", "anything"):
            near = near.replace(month=rng.randint(1, 12), day=min(near.day, 28))
        if how in ("year", "anything"):
            near = near.replace(year=near.year + rng.randint(-90, 90), day=min(near.day, 28))
        days += [near] * (near not in days)
    return days[1:]


def date_understanding(rng, level: float | None) -> dict:
    """Given what the sentence says about today, what is the date asked for?"""
    while True:
        try:  # until every day in it exists: no February 30, and no anniversary of a February 29 in other years
            d = date(rng.randint(1900, 2030), rng.randint(1, 12), rng.randint(1, 31))
            text, distance, *named = rng.choice(TODAYS[: None if level is None else 8])
            asked = rng.choice(list(ASKED)[: None if level is None else 3])
            n = rng.randint(2, 9)
            named = named[0](d, n) if named else d
            distance = distance(n) if callable(distance) else distance
            today, to_today = move(named, **distance) if distance else (named, "")
            answer, to_answer = move(today, **ASKED[asked]) if ASKED[asked] else (today, "")
            break
        except ValueError:
            continue
    text = text.format(
        d=d, n=n, us=f"{d.month}/{d.day}/{d.year}", mdy=f"{d:%b} {d.day}, {d.year}", day=f"{d.day}{TH.get(d.day, 'th')}",
        next=d.day + 1, month=NTH[d.month % 9 + 1], nth=NTH[n], visit=f"{n}{TH.get(n, 'th')}", years=NUMBER[n + 1],
        more=n + 1, four=4 * n, five=5 * n, six=6 * n, who=("Jane", "John")[n % 2],
    )  # fmt: skip
    steps = f"{named:%m/%d/%Y}, {to_today}, today is {today:%m/%d/%Y}" if to_today else f"today is {today:%m/%d/%Y}"
    options = [answer, *wrong_days(rng, answer, 5 if level is None else rng.randint(1, 5))]
    dates = [f"{option:%m/%d/%Y}" for option in options]
    steps = f"{steps}, {to_answer}, {dates[0]}" if to_answer else steps
    question = f"{text} What is the date {asked} in MM/DD/YYYY?"
    return {"input": question, "target_scores": scores(dates, dates[0]), "steps": steps}
