// Ask about what a device saw, with OpenAI's own client, unchanged.
//
//   OPENAI_BASE_URL=https://bridge.example:8443/v1 OPENAI_API_KEY=nbk_… \
//   NODE_EXTRA_CA_CERTS=roots.pem node ask.mjs gate-3 'is there a fire ?'

import OpenAI from "openai";

const [device, question] = process.argv.slice(2);
if (!device || !question) {
  console.error("usage: node ask.mjs DEVICE QUESTION");
  process.exit(2);
}
const client = new OpenAI(); // its address and key are in the environment
const { data: models } = await client.models.list();
const asked = {
  model: models[0].id,
  messages: [
    {
      role: "user",
      content: [
        { type: "image_url", image_url: { url: `bridge://${device}/latest` } },
        { type: "text", text: question },
      ],
    },
  ],
};

try {
  const whole = await client.chat.completions.create(asked);
  console.log(JSON.stringify({ answer: whole.choices[0].message.content, bridge: whole.bridge }));
  const stream = client.chat.completions.stream({ ...asked, stream_options: { include_usage: true } });
  let pieces = 0;
  for await (const chunk of stream) pieces += chunk.choices[0]?.delta?.content ? 1 : 0;
  const last = await stream.finalChatCompletion();
  console.log(JSON.stringify({ streamed: last.choices[0].message.content, pieces, usage: last.usage }));
} catch (error) {
  if (!(error instanceof OpenAI.APIError)) throw error;
  console.error(JSON.stringify({ kind: error.constructor.name, status: error.status, code: error.code, id: error.requestID }));
  process.exitCode = 1;
}
