// OpenAI's client for JavaScript: whole pictures, a URL, events, an error. Prints what it got as JSON.
import OpenAI from "openai";

const client = new OpenAI({ baseURL: process.env.BASE_URL, apiKey: "none", maxRetries: 0 });
const own = { steps: 2, seed: 5, negative_prompt: "dark" };

const whole = await client.images.generate({
  model: "gpt-image-1",
  prompt: "a red fox",
  n: 2,
  size: "auto",
  output_format: "jpeg",
  output_compression: 80,
  ...own,
});
const hosted = await client.images.generate({
  prompt: "a fox",
  size: "64x64",
  response_format: "url",
  steps: 1,
});
const read = await fetch(hosted.data[0].url);
const events = [];
const stream = await client.images.generate({
  prompt: "a fox",
  stream: true,
  partial_images: 2,
  steps: 9,
});
for await (const event of stream) {
  events.push({ type: event.type, size: event.size, usage: event.usage ?? null });
}
let refused;
try {
  await client.images.generate({ prompt: "a fox", size: "1792x1024" });
} catch (error) {
  refused = { status: error.status, param: error.param, request: error.requestID };
}
const models = [];
for await (const model of client.models.list()) models.push(model.id);

console.log(
  JSON.stringify({
    pictures: whole.data.map((picture) => picture.b64_json),
    request: whole._request_id,
    usage: whole.usage,
    type: read.headers.get("content-type"),
    events,
    refused,
    models,
  }),
);
