"""Instructions without data: descriptions of tasks for which there are neither inputs nor right answers.

Distillation needs no more than that: a teacher with the description in its context says how it would answer, whatever
the input is. They are here for breadth, above all of the names that answers may have, which a generator must read off
the description. Nothing here asks for what the tasks that are held out ask for.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from training.synthetic.wordings import either_wordings, label_wordings, open_wordings, yes_no_wordings


@dataclass(frozen=True)
class Instruction:
    """A task of which nothing is known but what it is: a unique name, and the same task in several wordings."""

    name: str
    descriptions: tuple[str, ...]


_GIVENS = (
    "a text|a short text|one text",
    "a sentence|one sentence|a line of text",
    "a message|a short message|what somebody wrote",
    "an input|some input|a piece of text",
    "a remark|a statement|one statement",
    "a text of any kind|one or more words|a word, a list or a sentence",
)
_PLAIN_LABELS = (
    ("yes", "no"), ("Yes", "No"), ("true", "false"), ("True", "False"), ("1", "0"), ("Y", "N"),
    ("YES", "NO"), ("T", "F"),
)  # fmt: skip
_CODED_LABELS = (
    ("A", "B"), ("B", "A"), ("0", "1"), ("1", "2"), ("+", "-"), ("x", "o"), ("correct", "incorrect"),
    ("right", "wrong"), ("valid", "invalid"), ("accept", "reject"), ("match", "no match"), ("pass", "fail"),
    ("agree", "disagree"), ("keep", "drop"), ("red", "green"), ("on", "off"), ("alpha", "beta"),
    ("left", "right"), ("likely", "unlikely"), ("the case", "not the case"), ("same", "different"),
    ("good", "bad"), ("up", "down"), ("stop", "go"),
)  # fmt: skip
_PLAIN_PER_QUESTION = 3
_CODED_PER_QUESTION = 2

# what holds, and the question
_QUESTIONS = (
    ("the text is about sports", "Is the text about sports?"),
    ("the text is about money", "Does the text deal with money?"),
    ("the text names a person", "Is a person named?"),
    ("the text mentions a place", "Does a place occur in it?"),
    ("the text mentions food or drink", "Does it mention food or drink?"),
    ("the text is about music", "Is it about music?"),
    ("the text is about the weather", "Is the weather the subject?"),
    ("the text is about health", "Does it have to do with health?"),
    ("the text is about politics", "Is it about politics?"),
    ("the text is about animals", "Is it about animals?"),
    ("the text is about technology", "Does it concern technology?"),
    ("the text is about the past", "Does it speak of the past?"),
    ("the text makes a promise", "Is something promised?"),
    ("the text is a question", "Is it a question?"),
    ("the text is a request", "Does it ask somebody to do something?"),
    ("the text is a command", "Is it an order to do something?"),
    ("the text is an apology", "Does the writer apologise?"),
    ("the text is a greeting", "Is it a greeting?"),
    ("the text is advertising", "Is it an advertisement?"),
    ("the text is spam", "Is it spam?"),
    ("the text is polite", "Is the tone polite?"),
    ("the text is rude", "Is the tone rude?"),
    ("the text is sarcastic", "Is the remark meant ironically?"),
    ("the text is a joke", "Is it meant to be funny?"),
    ("the text is formal", "Is the style formal?"),
    ("the text is easy to read", "Can a child understand it?"),
    ("the writer is angry", "Does the writer sound angry?"),
    ("the writer is happy", "Is the writer happy?"),
    ("the writer is worried", "Is the writer worried?"),
    ("the writer is certain", "Does the writer sound certain?"),
    ("the writer gives an opinion", "Does it express an opinion?"),
    ("the writer states a fact", "Does it state a fact?"),
    ("the writer agrees with somebody", "Does the writer agree?"),
    ("the writer needs help", "Does the writer ask for help?"),
    ("the writer wants to buy something", "Does the writer want to buy something?"),
    ("the writer wants to cancel something", "Is this about a cancellation?"),
    ("the writer is a customer", "Did a customer write this?"),
    ("the statement is true", "Is this statement true?"),
    ("the statement is a common myth", "Is this a myth that many believe?"),
    ("the statement can be proved", "Could this be proved?"),
    ("the claim is supported by the passage", "Does the passage support the claim?"),
    ("the hypothesis follows from the premise", "Does the hypothesis follow from the premise?"),
    ("the two sentences say the same", "Do both sentences have one meaning?"),
    ("the two sentences contradict each other", "Do the sentences contradict each other?"),
    ("the answer fits the question", "Is the question answered?"),
    ("the second sentence goes on from the first", "Does the second sentence continue the first?"),
    ("the sentence is grammatical", "Is the grammar right?"),
    ("the spelling is right", "Is everything spelled correctly?"),
    ("the sentence makes sense", "Does this make sense?"),
    ("the sentence is in the passive voice", "Is the passive voice used?"),
    ("the sentence has a negation", "Is anything negated?"),
    ("the verb is in the past tense", "Is the verb in the past tense?"),
    ("the text is in English", "Is this English?"),
    ("the text is a quotation", "Is somebody quoted?"),
    ("the text has a number in it", "Is there a number in it?"),
    ("the text has a comma in it", "Does it contain a comma?"),
    ("the text starts with a capital letter", "Is the first letter a capital?"),
    ("the text has an even number of words", "Is the number of words even?"),
    ("the text is longer than five words", "Are there more than five words?"),
    ("the number is prime", "Is it a prime number?"),
    ("the number is larger than 100", "Is the number larger than a hundred?"),
    ("the sum is right", "Is the calculation right?"),
    ("the list is sorted", "Are the items in order?"),
    ("the list has a repeated item", "Does any item occur twice?"),
    ("the string is a palindrome", "Does it read the same backwards?"),
    ("the brackets are balanced", "Does every bracket have its partner?"),
    ("the thing is alive", "Is it a living thing?"),
    ("the thing can be eaten", "Is it edible?"),
    ("the thing fits into a pocket", "Would it fit into a pocket?"),
    ("the thing is made by people", "Is it man-made?"),
    ("the thing can float on water", "Does it float?"),
    ("the action is dangerous", "Is this dangerous?"),
    ("the action is against the law", "Would this be illegal?"),
    ("the action is kind", "Is this a kind thing to do?"),
    ("the person should be praised", "Does the person deserve praise?"),
    ("the event is good news", "Is this good news?"),
    ("the email needs a reply", "Does this need a reply?"),
    ("the ticket is urgent", "Is this urgent?"),
    ("the code has a bug", "Is there a bug in the code?"),
    ("the address is complete", "Is the address complete?"),
)

# the first case, the second case, and the label of each
_CONTRASTS = (
    ("the tone is formal", "the tone is casual", ("formal", "informal")),
    ("it is a fact", "it is an opinion", ("fact", "opinion")),
    ("the speaker is for it", "the speaker is against it", ("pro", "con")),
    ("the reviewer would come again", "the reviewer would not", ("again", "never")),
    ("the noun is singular", "the noun is plural", ("one", "many")),
    ("the word is concrete", "the word is abstract", ("concrete", "abstract")),
    ("it happens indoors", "it happens outdoors", ("inside", "outside")),
    ("the text is prose", "the text is verse", ("prose", "poem")),
    ("a human wrote it", "a machine wrote it", ("human", "machine")),
    ("it looks to the past", "it looks to the future", ("past", "future")),
    ("the sentence is active", "the sentence is passive", ("active", "passive")),
    ("the mood is good", "the mood is bad", ("positive", "negative")),
    ("the price is high", "the price is low", ("expensive", "cheap")),
    ("it is hot", "it is cold", ("hot", "cold")),
    ("the animal is wild", "the animal is tame", ("wild", "tame")),
    ("the message is wanted", "the message is spam", ("ham", "spam")),
    ("the first option is better", "the second option is better", ("first", "second")),
    ("the first option is better", "the second option is better", ("A", "B")),
    ("the first choice is correct", "the second choice is correct", ("1", "2")),
    ("option A fits", "option B fits", ("A", "B")),
    ("the claim is backed", "the claim is refuted", ("supports", "refutes")),
    ("the user is satisfied", "the user is not", ("satisfied", "unsatisfied")),
    ("the two texts agree", "they do not", ("equivalent", "not equivalent")),
    ("the two texts have one meaning", "they differ", ("paraphrase", "not a paraphrase")),
    ("the story ends well", "the story ends badly", ("happy end", "sad end")),
    ("the speaker lies", "the speaker tells the truth", ("lie", "truth")),
    ("it is safe", "it is harmful", ("safe", "unsafe")),
    ("the request is simple", "the request is hard", ("easy", "hard")),
)

# what to do, what the answer is, and the labels
_LABELLED = (
    ("sort the news by its section", "the section of the news", ("sports", "politics", "business", "science")),
    ("name the topic", "the topic of the text", ("World", "Sports", "Business", "Sci/Tech")),
    ("name the field of study", "the field that it belongs to", ("history", "biology", "physics", "law", "art")),
    ("name the feeling", "the feeling of the writer", ("joy", "anger", "sadness", "fear", "surprise")),
    ("name the mood", "the mood", ("calm", "excited", "bored", "tense")),
    ("judge the sentiment", "the sentiment", ("positive", "neutral", "negative")),
    ("judge the sentiment", "the sentiment as a sign", ("+", "0", "-")),
    ("rate the text", "the number of stars", ("1", "2", "3", "4", "5")),
    ("rate how strongly it is meant", "the strength", ("weak", "medium", "strong")),
    ("say how urgent it is", "the urgency", ("low", "medium", "high", "critical")),
    ("set the priority", "the priority", ("P0", "P1", "P2", "P3")),
    ("name the language", "the language", ("English", "French", "German", "Spanish", "Italian")),
    ("give the language code", "the code of the language", ("en", "fr", "de", "es", "it")),
    ("name the part of speech", "the part of speech", ("noun", "verb", "adjective", "adverb")),
    ("name the tense", "the tense of the verb", ("past", "present", "future")),
    ("name the person of the verb", "the grammatical person", ("first", "second", "third")),
    ("name the type of sentence", "the type of the sentence", ("statement", "question", "exclamation", "command")),
    ("say who would write this", "the likely writer", ("teacher", "doctor", "lawyer", "child", "journalist")),
    ("say who is meant", "the reader that is meant", ("children", "students", "experts", "everybody")),
    ("name the genre", "the genre", ("comedy", "drama", "horror", "romance", "documentary")),
    ("name the kind of text", "the kind of text", ("email", "review", "recipe", "news", "advertisement")),
    ("route the ticket", "the team for the ticket", ("billing", "shipping", "technical", "sales")),
    ("recognise the intent", "the intent of the user", ("order", "cancel", "complain", "ask", "thank")),
    ("recognise the device", "the device that is meant", ("lamp", "heating", "door", "music", "alarm")),
    ("say what the user wants from the bank", "the banking intent", ("balance", "transfer", "card", "loan")),
    ("name the kind of thing", "the kind of thing", ("person", "place", "object", "event", "idea")),
    ("name the type of the entity", "the type of the entity", ("PER", "LOC", "ORG", "MISC")),
    ("name the material", "the material", ("wood", "metal", "glass", "stone", "plastic")),
    ("name the season", "the season that fits", ("spring", "summer", "autumn", "winter")),
    ("name the time of day", "the time of day that fits", ("morning", "noon", "evening", "night")),
    ("name the sense", "the sense that is used", ("sight", "hearing", "smell", "taste", "touch")),
    ("name the continent", "the continent", ("Africa", "Asia", "Europe", "America", "Oceania")),
    ("name the direction", "the direction", ("north", "south", "east", "west")),
    ("name the colour", "the colour that fits best", ("red", "blue", "green", "yellow", "black", "white")),
    ("name the size", "the size", ("small", "medium", "large")),
    ("give the size as a letter", "the letter of the size", ("S", "M", "L", "XL")),
    ("name the shape", "the shape", ("circle", "square", "triangle")),
    ("answer the question with the letter of the right choice", "the letter of the choice", ("A", "B", "C", "D")),
    ("choose the best option", "the letter of the best option", ("A", "B", "C")),
    ("choose the right ending", "the letter of the right ending", ("a", "b", "c", "d")),
    ("give the number of the right answer", "the number of the right answer", ("1", "2", "3", "4")),
    ("compare the two", "how the two compare", ("more", "less", "equal")),
    ("compare the numbers", "the sign between the numbers", ("<", ">", "=")),
    ("judge the claim", "the verdict on the claim", ("true", "false", "unknown")),
    ("judge the claim by the passage", "the verdict", ("SUPPORTED", "REFUTED", "NOT ENOUGH INFO")),
    ("say how the sentences relate", "how they relate", ("entailment", "neutral", "contradiction")),
    ("give the stance", "the stance of the writer", ("favor", "against", "none")),
    ("judge how likely it is", "how likely it is", ("impossible", "unlikely", "likely", "certain")),
    ("judge how often it happens", "how often it happens", ("never", "sometimes", "often", "always")),
    ("judge the quality of the answer", "the grade", ("excellent", "good", "fair", "poor")),
    ("grade the essay", "the grade", ("A", "B", "C", "D", "F")),
    ("say how hard it is", "the difficulty", ("easy", "medium", "hard")),
    ("judge whether to publish it", "the decision", ("publish", "revise", "reject")),
    ("moderate the post", "the action of the moderator", ("allow", "warn", "remove")),
    ("say how harmful it is", "the level of harm", ("none", "mild", "severe")),
    ("name the error", "the kind of error", ("spelling", "grammar", "punctuation", "none")),
    ("name the operation", "the operation that solves it", ("addition", "subtraction", "multiplication", "division")),
    ("name the data type", "the type of the value", ("int", "float", "string", "bool", "list")),
    ("name the relation of the two words", "the relation", ("synonym", "antonym", "part", "kind", "none")),
    ("name the speaker", "who speaks", ("user", "assistant", "system")),
    ("name the tone", "the tone", ("friendly", "neutral", "hostile")),
    ("say where it is found", "where it is found", ("kitchen", "garden", "office", "street", "school")),
    ("say what to wear", "what to wear", ("coat", "shirt", "shorts")),
    ("say how it moves", "how it moves", ("walks", "flies", "swims", "rolls", "stays")),
    ("say when it was", "the century", ("17th", "18th", "19th", "20th", "21st")),
)

# what to do, and what the answer is
_OPEN = (
    ("translate the text into Italian", "the text in Italian"),
    ("translate the text into Portuguese", "the text in Portuguese"),
    ("translate the text into Dutch", "the text in Dutch"),
    ("translate the text into Russian", "the text in Russian"),
    ("translate the text into Chinese", "the text in Chinese"),
    ("translate the text into Latin", "the text in Latin"),
    ("translate the text into simple English", "the text in simple English"),
    ("summarise the text in one word", "one word that sums up the text"),
    ("summarise the text in five words", "a summary of five words"),
    ("give the text a title", "a title for the text"),
    ("write a hashtag for the text", "a hashtag"),
    ("name the main subject", "the main subject"),
    ("name the main verb", "the main verb"),
    ("list the nouns", "all nouns, with commas"),
    ("list the verbs", "all verbs, with commas"),
    ("list the names", "all names, with commas"),
    ("extract the numbers", "the numbers in the text"),
    ("extract the place", "the place that is mentioned, or none"),
    ("extract the person", "the person that is mentioned, or none"),
    ("extract the time", "the time that is mentioned, or none"),
    ("extract the price", "the price that is mentioned, or none"),
    ("extract the email address", "the email address, or none"),
    ("find the longest word", "the longest word"),
    ("find the shortest word", "the shortest word"),
    ("repeat the last word", "the last word"),
    ("repeat the text", "the text as it is"),
    ("repeat the text twice", "the text two times"),
    ("repeat the text in quotation marks", "the text in quotation marks"),
    ("write the text without spaces", "the text with its spaces removed"),
    ("write a dash between all letters", "the letters with dashes"),
    ("write the first letter of every word", "the first letters"),
    ("replace every vowel by a star", "the text with stars for vowels"),
    ("write the text in capitals", "the text in capital letters"),
    ("count the words", "the number of words"),
    ("count the letters", "the number of letters"),
    ("count the vowels", "the number of vowels"),
    ("count the commas", "the number of commas"),
    ("say how many people are mentioned", "the number of people"),
    ("answer the question", "the answer to the question"),
    ("answer the question with a number", "a number that answers the question"),
    ("answer with the first name that comes to mind", "a first name"),
    ("solve the problem", "the solution as a number"),
    ("double the number", "twice the number"),
    ("write the number in Roman numerals", "the Roman numeral"),
    ("write the number in binary", "the binary number"),
    ("round the number to ten", "the number rounded to ten"),
    ("give the square of the number", "the square"),
    ("give the opposite", "the opposite"),
    ("give a synonym", "a word of the same meaning"),
    ("give the category", "the category of the thing"),
    ("give an example of it", "an example"),
    ("give the plural", "the plural"),
    ("give the past tense", "the past tense of the verb"),
    ("give the comparative", "the comparative form"),
    ("give the adjective that belongs to it", "the adjective"),
    ("give the noun that belongs to it", "the noun"),
    ("give the emoji that fits", "one emoji"),
    ("give the colour of the thing", "a colour"),
    ("give the sound that it makes", "the sound of the animal or thing"),
    ("give the young of the animal", "the name of the young animal"),
    ("give the country", "the country that it belongs to"),
    ("give the capital city", "the capital city"),
    ("give the language that is spoken there", "a language"),
    ("give the currency", "the currency"),
    ("give the year", "the year in which it happened"),
    ("give the author", "the author"),
    ("give the inventor", "the inventor"),
    ("give the chemical symbol", "the chemical symbol"),
    ("give the profession", "the profession of the person"),
    ("give the tool that is needed", "the tool that is needed"),
    ("give the ingredient that is missing", "the missing ingredient"),
    ("give the part of the body", "a part of the body"),
    ("give the room where this happens", "the room"),
    ("give a question to which this is the answer", "a question"),
    ("give the word that does not belong", "the odd word"),
    ("give the word that comes next", "the next word"),
    ("continue the series", "the next item of the series"),
    ("continue the sentence", "the rest of the sentence"),
    ("complete the proverb", "the missing part of the proverb"),
    ("correct the spelling", "the text with right spelling"),
    ("correct the grammar", "the text with right grammar"),
    ("make the sentence negative", "the negated sentence"),
    ("make the sentence a question", "the sentence as a question"),
    ("make the text polite", "a polite form of the text"),
    ("make the text shorter", "a shorter form of the text"),
    ("put the sentence into the past", "the sentence in the past tense"),
    ("put the words into reverse order", "the words in reverse order"),
    ("put the items into alphabetical order", "the items from a to z"),
    ("put the items on one line each", "one item a line"),
    ("join the items with plus signs", "the items with plus signs between them"),
    ("remove the duplicates", "the items, each once"),
    ("remove the punctuation", "the text without punctuation"),
    ("remove the numbers", "the text without numbers"),
    ("write a reply", "a short reply"),
    ("write a thank-you note", "a note of thanks"),
    ("write a warning", "a warning in one line"),
    ("write JSON with the key text", "a JSON object with the key text"),
    ("write a Python list of the words", "a Python list"),
    ("write a shell command for it", "a shell command"),
    ("write a regular expression that matches it", "a regular expression"),
    ("write a variable name for it", "a variable name"),
    ("write SQL for it", "an SQL query"),
)


def instructions() -> list[Instruction]:
    """All of them, in the same order and the same words at every call."""
    made = []
    for i, (that, question) in enumerate(_QUESTIONS):
        rng = random.Random(f"instructions/{that}")
        given = rng.choice(_GIVENS)
        for labels in rng.sample(_PLAIN_LABELS, _PLAIN_PER_QUESTION):
            name, do = f"question_{i}_{'_'.join(labels)}", f"decide whether {that}|tell whether {that}"
            listing = label_wordings(name, given, do, f"whether {that}", labels)
            made.append(Instruction(name, (*listing, *yes_no_wordings(name, given, that, question, *labels))))
        for labels in rng.sample(_CODED_LABELS, _CODED_PER_QUESTION):
            name = f"question_{i}_{'_'.join(labels)}"
            made.append(Instruction(name, yes_no_wordings(name, given, that, question, *labels)))
    for i, (one, other, labels) in enumerate(_CONTRASTS):
        given = random.Random(f"instructions/{one}").choice(_GIVENS)
        made.append(Instruction(f"contrast_{i}", either_wordings(f"contrast_{i}", given, one, other, *labels)))
    for i, (do, give, names) in enumerate(_LABELLED):
        given = random.Random(f"instructions/{give}").choice(_GIVENS)
        made.append(Instruction(f"labelled_{i}", label_wordings(f"labelled_{i}", given, do, give, names)))
    for i, (do, give) in enumerate(_OPEN):
        given = random.Random(f"instructions/{give}").choice(_GIVENS)
        made.append(Instruction(f"open_{i}", open_wordings(f"open_{i}", given, do, give)))
    return made
