// A generated client for C++: draws a picture, reads an error, and cancels by id. Prints what it got as JSON.
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <memory>
#include <string>
#include <vector>

#include <grpcpp/grpcpp.h>

#include "text2image/v1/image_generation.grpc.pb.h"

using namespace text2image::v1;

static GenerateRequest Asked(int steps) {
  GenerateRequest request;
  request.set_prompt("a fox");
  request.set_seed(14);
  request.set_steps(steps);
  request.set_width(64);
  request.set_height(64);
  return request;
}

int main(int, char** arguments) {
  auto channel = grpc::CreateChannel(std::getenv("GRPC_ADDRESS"), grpc::InsecureChannelCredentials());
  auto stub = ImageGeneration::NewStub(channel);

  grpc::ClientContext describing;
  GetModelResponse model;
  grpc::Status described = stub->GetModel(&describing, GetModelRequest(), &model);

  grpc::ClientContext drawing;
  auto stream = stub->Generate(&drawing, Asked(2));
  GenerateResponse message;
  std::string events;
  while (stream->Read(&message)) {
    switch (message.event_case()) {
      case GenerateResponse::kQueued: events += "queued "; break;
      case GenerateResponse::kProgress: events += "progress "; break;
      case GenerateResponse::kImage:
        events += "image ";
        std::ofstream(arguments[1], std::ios::binary) << message.image().png();
        break;
      case GenerateResponse::kCompleted: events += "completed"; break;
      default: break;
    }
  }
  grpc::Status drawn = stream->Finish();

  grpc::ClientContext wrong;
  auto refused = stub->Generate(&wrong, Asked(0));
  while (refused->Read(&message)) {
  }
  grpc::Status refusal = refused->Finish();

  GenerateRequest long_one = Asked(150);
  long_one.set_n(2);
  long_one.set_request_id("cpp-1");
  grpc::ClientContext waiting;
  auto cancelled = stub->Generate(&waiting, long_one);
  cancelled->Read(&message);
  grpc::ClientContext cancelling;
  CancelRequest cancel;
  cancel.set_request_id("cpp-1");
  CancelResponse answer;
  stub->Cancel(&cancelling, cancel, &answer);
  while (cancelled->Read(&message)) {
  }
  grpc::Status ended = cancelled->Finish();

  std::cout << "{\"model\": \"" << model.id() << "\", \"events\": \"" << events
            << "\", \"refused\": " << refusal.error_code() << ", \"found\": "
            << (answer.found() ? "true" : "false") << ", \"cancelled\": " << ended.error_code() << "}"
            << std::endl;
  return described.ok() && drawn.ok() ? 0 : 1;
}
