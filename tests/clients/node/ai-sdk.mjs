// Vercel's AI SDK, by its provider for OpenAI and by that for servers like it. Prints what it got as JSON.
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateImage } from "ai";

const baseURL = process.env.BASE_URL;
const official = createOpenAI({ baseURL, apiKey: "none" });
const compatible = createOpenAICompatible({ name: "pictures", baseURL, apiKey: "none" });

async function draw(model, options) {
  const { images } = await generateImage({ model, prompt: "a fox", maxRetries: 0, ...options });
  return images.map((image) => ({ type: image.mediaType, picture: image.base64 }));
}

console.log(
  JSON.stringify({
    alias: await draw(official.image("gpt-image-1"), {
      n: 2,
      size: "128x128",
      providerOptions: { openai: { quality: "low", outputFormat: "webp" } },
    }),
    own: await draw(official.image("embedded"), { size: "64x64" }),
    compatible: await draw(compatible.imageModel("embedded"), {
      size: "64x64",
      providerOptions: { pictures: { user: "me", steps: 1 } },
    }),
  }),
);
