// A generated client for Go: draws a picture, reads an error, and cancels by id. Prints what it got as JSON.
package main

import (
	"context"
	"encoding/json"
	"io"
	"log"
	"os"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	pb "text2image/v1"
)

// Debian's gRPC is older than its protobuf: it is told to marshal with the latter.
type codec struct{}

func (codec) Marshal(message interface{}) ([]byte, error) {
	return proto.Marshal(message.(proto.Message))
}

func (codec) Unmarshal(data []byte, message interface{}) error {
	return proto.Unmarshal(data, message.(proto.Message))
}

func (codec) Name() string { return "proto" }

func must(err error) {
	if err != nil {
		log.Fatal(err)
	}
}

func main() {
	connection, err := grpc.Dial(os.Getenv("GRPC_ADDRESS"), grpc.WithInsecure(),
		grpc.WithDefaultCallOptions(grpc.ForceCodec(codec{}), grpc.MaxCallRecvMsgSize(64<<20)))
	must(err)
	defer connection.Close()
	client := pb.NewImageGenerationClient(connection)
	ctx, stop := context.WithTimeout(context.Background(), 120*time.Second)
	defer stop()

	got := map[string]interface{}{}
	model, err := client.GetModel(ctx, &pb.GetModelRequest{})
	must(err)
	got["model"] = model.Id

	asked := &pb.GenerateRequest{Prompt: "a fox", Steps: proto.Int32(2), Seed: proto.Int64(13),
		Width: proto.Int32(64), Height: proto.Int32(64)}
	stream, err := client.Generate(ctx, asked)
	must(err)
	events := []string{}
	for {
		message, err := stream.Recv()
		if err == io.EOF {
			break
		}
		must(err)
		switch event := message.Event.(type) {
		case *pb.GenerateResponse_Queued:
			events = append(events, "queued")
		case *pb.GenerateResponse_Progress:
			events = append(events, "progress")
		case *pb.GenerateResponse_Image:
			events = append(events, "image")
			got["picture"] = event.Image.GetPng()
		case *pb.GenerateResponse_Completed:
			events = append(events, "completed")
		}
	}
	got["events"] = events

	asked.Steps = proto.Int32(0)
	stream, err = client.Generate(ctx, asked)
	must(err)
	_, err = stream.Recv()
	got["refused"] = status.Code(err).String()

	asked.Steps, asked.N, asked.RequestId = proto.Int32(150), proto.Int32(2), "go-1"
	stream, err = client.Generate(ctx, asked)
	must(err)
	_, err = stream.Recv()
	must(err)
	cancelled, err := client.Cancel(ctx, &pb.CancelRequest{RequestId: "go-1"})
	must(err)
	for err == nil {
		_, err = stream.Recv()
	}
	got["found"], got["cancelled"] = cancelled.Found, status.Code(err).String()
	must(json.NewEncoder(os.Stdout).Encode(got))
}
