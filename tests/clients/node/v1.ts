// A generated client for TypeScript, over gRPC as a program has it and over gRPC-Web as a page has it: draws a picture,
// reads an error, cancels by id and by leaving. Prints what it got as JSON.
import { Code, ConnectError, createClient, type Transport } from "@connectrpc/connect";
import { createGrpcTransport } from "@connectrpc/connect-node";
import { createGrpcWebTransport } from "@connectrpc/connect-web";

import { ImageGeneration } from "./gen/text2image/v1/image_generation_pb.js";

const size = { width: 64, height: 64 };

async function ending(events: AsyncIterable<unknown>): Promise<string> {
  try {
    for await (const _ of events) {
    }
  } catch (error) {
    return Code[ConnectError.from(error).code];
  }
  return "OK";
}

async function told(transport: Transport, id: string, seed: bigint) {
  const small = { ...size, prompt: "a fox", seed };
  const client = createClient(ImageGeneration, transport);
  const model = await client.getModel({});
  const events: (string | undefined)[] = [];
  let picture = "";
  for await (const { event } of client.generate({ ...small, steps: 2 })) {
    events.push(event.case);
    if (event.case === "image" && event.value.content.case === "png") {
      picture = Buffer.from(event.value.content.value).toString("base64");
    }
  }
  const refused = await ending(client.generate({ ...small, steps: 0 }));
  const long = client.generate({ ...small, steps: 150, n: 2, requestId: id });
  const reading = long[Symbol.asyncIterator]();
  await reading.next();
  const { found } = await client.cancel({ requestId: id });
  const cancelled = await ending({ [Symbol.asyncIterator]: () => reading });
  const leaving = new AbortController();
  const left = client.generate({ ...small, steps: 150, n: 2 }, { signal: leaving.signal });
  const looking = left[Symbol.asyncIterator]();
  await looking.next();
  leaving.abort();
  const aborted = await ending({ [Symbol.asyncIterator]: () => looking });
  return { model: model.id, events, picture, refused, found, cancelled, aborted };
}

const program = createGrpcTransport({ baseUrl: `http://${process.env["GRPC_ADDRESS"]}` });
const page = createGrpcWebTransport({ baseUrl: process.env["HTTP_URL"]! });
// Seeds that no other client takes: the server remembers its pictures.
const got = { program: await told(program, "node-1", 11n), page: await told(page, "page-1", 12n) };
console.log(JSON.stringify(got));
