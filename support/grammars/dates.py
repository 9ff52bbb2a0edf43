"""Date understanding: a sentence from which to tell what day today is, and a question about a day near it.

Steps begin with the day that the sentence names, go to today, and on to the day asked for. A day is moved in small
steps: `04/30/2021, +01: 31-30=01, today is 05/01/2021, -10: 01+30=31-10=21, 04/21/2021`.
"""

from calendar import monthrange
from datetime import date

from support.grammars.common import NTH, names, scores

NUMBERS = names("zero one two three four five six seven eight nine ten")
TH = {1: "st", 2: "nd", 3: "rd", 21: "st", 22: "nd", 23: "rd", 31: "st"}


def length(year: int, month: int) -> int:
    """How many days the month has."""
    return monthrange(year, month)[1]


def move(day: date, years: int = 0, months: int = 0, days: int = 0) -> tuple[date, str]:
    """Another day, and the steps that lead there; ValueError where there is none, such as a month after January 31."""
    if years or months:
        year, month = divmod(day.year * 12 + day.month - 1 + months, 12)
        return day.replace(
            year=year + years, month=month + 1
        ), f"{years:+03} years" if years else f"{months:+03} months"
    year, month, number, work = day.year, day.month, day.day, []
    if days < 0:
        while number + days < 1:  # borrow the month before
            year, month = (year, month - 1) if month > 1 else (year - 1, 12)
            work.append(f"{number:02}+{length(year, month)}=")
            number += length(year, month)
        work.append(f"{number:02}-{-days:02}={number + days:02}")
        return date(year, month, number + days), f"{days:+03}: {''.join(work)}"
    number += days
    text = f"{day.day:02}+{days:02}={number:02}"
    while number > length(year, month):
        number -= length(year, month)
        text += f"-{length(year, month)}={number:02}"
        year, month = (year, month + 1) if month < 12 else (year + 1, 1)
    return date(year, month, number), f"{days:+03}: {text}"


def month_end(day: date) -> date:
    """The last day of its month."""
    return day.replace(day=length(day.year, day.month))


# fmt: off
# Ways to say what day today is, the plain ones first. From a day d, also written as 5/4/2004 (us) and Jun 1, 2021
# (mdy), and a number n between 2 and 9, each makes a text, the day that it names, and how far today is from that.
TODAYS = [
    lambda d, n, us, mdy: (f"Today is {mdy}.", d, {}),
    lambda d, n, us, mdy: (f"It is {us} today.", d, {}),
    lambda d, n, us, mdy: (f"Yesterday was {d:%B} {d.day}, {d.year}.", d, {"days": 1}),
    lambda d, n, us, mdy: (f"Tomorrow is {us}.", d, {"days": -1}),
    lambda d, n, us, mdy: (f"Today, {us}, is a day that we will never forget.", d, {}),
    lambda d, n, us, mdy: (f"Today is the first day of {d.year}.", date(d.year, 1, 1), {}),
    lambda d, n, us, mdy: (f"This is the last day of {d.year}.", date(d.year, 12, 31), {}),
    lambda d, n, us, mdy: (f"The day before yesterday was {us}.", d, {"days": 2}),
    lambda d, n, us, mdy: (f"Jane booked a flight for tomorrow, {mdy}.", d, {"days": -1}),
    lambda d, n, us, mdy: (f"Jane scheduled {n} appointments with {n + 1} people for tomorrow ({d:%a}, {us}).", d,
                           {"days": -1}),
    lambda d, n, us, mdy: (f"Yesterday, {mdy}, Jane ate 2 pizzas and {n} wings.", d, {"days": 1}),
    lambda d, n, us, mdy: (f"The current local time is {n}:02 pm of {us}.", d, {}),
    lambda d, n, us, mdy: (f"Today is {mdy}. Jane's appointment will be {n} days later.", d, {}),
    lambda d, n, us, mdy: (f"The deadline is {mdy}, which is {n} days away from now.", d, {"days": -n}),
    lambda d, n, us, mdy: (f"It was {mdy.replace(',', TH.get(d.day, 'th') + ',')} a week ago.", d, {"days": 7}),
    lambda d, n, us, mdy: (f"Today's meeting is rescheduled to {n} am tomorrow, {us}.", d, {"days": -1}),
    lambda d, n, us, mdy: (f"The concert was scheduled to be on {d:%m/%d/%Y}, but was delayed by one day to today.", d,
                           {"days": 1}),
    lambda d, n, us, mdy: (f"Today is {d.month}/{d.day}. Jane is watching NFL {d.year}.", d, {}),
    lambda d, n, us, mdy: (f"Today is {d.month}/{d.day}, and it is Jane's {NTH[n]} time in the year {d.year} to see a "
                           "meteor shower.", d, {}),
    lambda d, n, us, mdy: (f"{d.year} is coming in {n} days.", date(d.year, 1, 1), {"days": -n}),
    lambda d, n, us, mdy: (f"Today is Christmas Eve of {d.year}.", date(d.year, 12, 24), {}),
    lambda d, n, us, mdy: (f"Jane is celebrating the last day of {d:%b} {d.year}.", month_end(d), {}),
    lambda d, n, us, mdy: (f"Today is the {NTH[n]} day of the {NTH[d.month % 9 + 1]} month of {d.year}.",
                           date(d.year, d.month % 9 + 1, n), {}),
    lambda d, n, us, mdy: (f"Today is the last day of the first quarter of {d.year}.", date(d.year, 3, 31), {}),
    lambda d, n, us, mdy: (f"Jane quit her job on {mdy}. {n * 6} days have passed since then.", d, {"days": n * 6}),
    lambda d, n, us, mdy: (f"On {mdy.replace(',', TH.get(d.day, 'th') + ',')} Jane bought {n * 5} eggs. She ate one per "
                           "day. Today she ran out of eggs.", d, {"days": n * 5}),
    lambda d, n, us, mdy: (f"{mdy} is like yesterday to Jane, but that is actually {NUMBERS[n + 1]} years ago.", d,
                           {"years": n + 1}),
    lambda d, n, us, mdy: (f"Jane and John married on {mdy}. It is their {n}-year anniversary today.", d, {"years": n}),
    lambda d, n, us, mdy: (f"Jane and John married on {mdy}. Today is their golden wedding anniversary.", d,
                           {"years": 50}),
    lambda d, n, us, mdy: (f"Jane was born on the last day of {d:%B} in {d.year}. Today is her {4 * n}-year-old "
                           "birthday.", month_end(d), {"years": 4 * n}),
    lambda d, n, us, mdy: (f"Jane got her job in {d.year}. Today is her {n}-year work anniversary. She still remembers "
                           f"that on {d:%b} {d.day}, her second day at work, she spilled coffee on her laptop.",
                           move(d, days=-1)[0], {"years": n}),
    lambda d, n, us, mdy: (f"Jane visits the bookstore on the {d.day}{TH.get(d.day, 'th')} of each month starting from "
                           f"the {d:%B} of {d.year}. It is her {n}{TH.get(n, 'th')} visit to the bookstore today.", d,
                           {"months": n - 1}),
    lambda d, n, us, mdy: ("In the UK, people usually put the day before the month when formatting the date. "
                           f"Therefore, today is {d:%d/%m/%Y} to them.", d, {}),
    lambda d, n, us, mdy: (f"Jane thinks today is {us}, but John thinks today is {d.month}/{d.day + 1}/{d.year}. "
                           f"{('Jane', 'John')[n % 2]} is correct.", d.replace(day=d.day + n % 2), {}),
    lambda d, n, us, mdy: (f"Jane thought today is {us}, but today is in fact {d:%b} {d.day + 1}, which is 1 day later.",
                           d, {"days": 1}),
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
        near = rng.choice(days[-3:])  # were all counted from the right day, it would show as their middle
        how = rng.choice(("days", "days", "month", "year", "anything"))
        if how == "days":
            near = date.fromordinal(
                near.toordinal() + rng.choice((-1, 1)) * rng.choice((1, 1, 2, 3, 7, 10, rng.randint(1, 30)))
            )
        if how in ("month", "anything"):
            near = near.replace(month=rng.randint(1, 12), day=min(near.day, 28))
        if how in ("year", "anything"):
            near = near.replace(year=near.year + rng.randint(-90, 90), day=min(near.day, 28))
        days += [near] * (near not in days)
    return days[1:]


def date_understanding(rng, level: float | None) -> dict:
    """From what the sentence says about today to the date asked for."""
    while True:
        try:  # until every day in it exists: no February 30, and no anniversary of a February 29 in other years
            d = date(rng.randint(1900, 2030), rng.randint(1, 12), rng.randint(1, 31))
            tell = rng.choice(TODAYS[: None if level is None else 8])
            asked = rng.choice(list(ASKED)[: None if level is None else 3])
            text, named, distance = tell(
                d, rng.randint(2, 9), f"{d.month}/{d.day}/{d.year}", f"{d:%b} {d.day}, {d.year}"
            )
            today, to_today = move(named, **distance) if distance else (named, "")
            answer, to_answer = move(today, **ASKED[asked]) if ASKED[asked] else (today, "")
            break
        except ValueError:
            continue
    steps = f"{named:%m/%d/%Y}, {to_today}, today is {today:%m/%d/%Y}" if to_today else f"today is {today:%m/%d/%Y}"
    options = [answer, *wrong_days(rng, answer, 5 if level is None else rng.randint(1, 5))]
    dates = [f"{option:%m/%d/%Y}" for option in options]
    return {
        "input": f"{text} What is the date {asked} in MM/DD/YYYY?",
        "target_scores": scores(dates, dates[0]),
        "steps": f"{steps}, {to_answer}, {answer:%m/%d/%Y}" if to_answer else steps,
    }
