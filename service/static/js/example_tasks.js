/** Tasks to begin with, each with an input to try. They are of the kinds that the generator was trained on. */

/** @type {{label: string, prompt: string, question: string}[]} */
export const EXAMPLE_TASKS = [
  { label: "Capital city", prompt: "Name the capital city of the country.", question: "Peru" },
  { label: "Past tense", prompt: "Give the past tense of the verb.", question: "swim" },
  { label: "Number in words", prompt: "Write the number in English words.", question: "268" },
  {
    label: "Booking time",
    prompt: "Extract the time of the booking from the restaurant booking message.",
    question: "Hi, a table for four at 7:30 pm on Friday, please. The name is Okafor.",
  },
  {
    label: "Review sentiment",
    prompt: "Is the review positive or negative? Answer with one of: positive, negative.",
    question: "It broke after two days and nobody answers my mails.",
  },
  { label: "Spell it out", prompt: "Spell the word out with a space between every two letters.", question: "adapter" },
];
