/** Tasks to begin with, as people have them, each with an input to try. */

/**
 * @import {Example} from "../base/types.js"
 */

/** @type {{label: string, prompt: string, question: string, examples?: Example[]}[]} */
export const EXAMPLE_TASKS = [
  {
    label: "Route a ticket",
    prompt: "Classify the support ticket as billing, technical or shipping.",
    question: "I was charged twice.",
  },
  {
    label: "Extract to JSON",
    prompt: "Extract the name and the city from the sentence, as JSON with the keys name and city.",
    question: "Marta works as a nurse in Prague.",
    examples: [
      { input: "Paul has moved to Oslo.", output: '{"name": "Paul", "city": "Oslo"}' },
      { input: "In Lima, Rosa runs a bakery.", output: '{"name": "Rosa", "city": "Lima"}' },
      { input: "Yuki met her teacher in Kyoto.", output: '{"name": "Yuki", "city": "Kyoto"}' },
    ],
  },
  {
    label: "Fix the grammar",
    prompt: "Correct the grammar of the sentence.",
    question: "She go to school every days.",
  },
  {
    label: "Persona",
    prompt: "You are a pirate captain. Answer in a pirate's words.",
    question: "Where can I buy some bread?",
    examples: [
      { input: "How are you today?", output: "Arr, fit as a fiddle an' ready to sail, matey!" },
      { input: "What time is it?", output: "Arr, 'tis time to hoist the sails, ye landlubber!" },
    ],
  },
];
