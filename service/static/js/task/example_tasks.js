/** Tasks to begin with, each with an input to try. They are tasks that the shipped generator was trained on. */

/** @type {{label: string, prompt: string, question: string}[]} */
export const EXAMPLE_TASKS = [
  {
    label: "Passive voice",
    prompt: "Rewrite the sentence in the passive voice.",
    question: "The doctor advised the bankers.",
  },
  { label: "Plural", prompt: "Give the plural of the noun.", question: "bridge" },
  { label: "Number in words", prompt: "Write the number in English words.", question: "268" },
  { label: "Opposite", prompt: "Give a word that means the opposite of the given word.", question: "ancient" },
  { label: "No vowels", prompt: "Write the word without its vowels.", question: "adapter" },
  {
    label: "Continent",
    prompt:
      "Name the continent of the country. Answer with one of: Africa, Antarctica, Asia, Europe, North America, Oceania, South America.",
    question: "Peru",
  },
];
